"""Short ways to make events: every field has a plausible value, name those that matter."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from shared.artifacts import Artifact
from shared.codec import encode_event
from shared.events import Event, Measurements, ModelReady, ModelUploaded, OptimizationClaimed, VariantReady
from shared.outcome_events import Coordinates, Receipt, Timings
from shared.processing import DecodeImage, Labels, Processing, Softmax, TopK
from shared.registry import Entry, Registry, fold
from shared.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

OWNER = "optimizer-1/abc"
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("n", 4), batch_axis=0),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("n", 2), batch_axis=0),),
)


def artifact(content: str = "model") -> Artifact:
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return Artifact(uri=f"file:///store/sha256/{sha256}", sha256=sha256, byte_size=len(content))


PROCESSING = Processing(
    preprocessing=(DecodeImage(output="x", width=2, height=2, color="L", layout="N"),),
    postprocessing=(
        Softmax(output="y", into="probabilities"),
        TopK(output="probabilities", values="confidence", indices="class", k=2),
        Labels(indices="class", into="label", labels=("cat", "dog")),
    ),
)
"""Fits `SIGNATURE`."""


def uploaded(model: str = "m", upload_id: str = "u1", **fields: Any) -> ModelUploaded:
    return ModelUploaded(model=model, upload_id=upload_id, artifact=artifact(upload_id), **fields)


def made_ready(model: str = "m", version: int = 1, attempt: int = 1, owner: str = OWNER) -> list[Event]:
    """An optimizer's whole attempt that ends well."""
    about = {"model": model, "version": version, "attempt": attempt, "owner": owner}
    variant = {"signature": SIGNATURE, "batch_cap": 32, "measurements": Measurements()}
    return [
        OptimizationClaimed(**about),
        VariantReady(**about, variant="fp32", artifact=artifact(f"fp32 {version} {attempt}"), **variant),
        ModelReady(**about, variant="fp32", reason="the reference"),
    ]


def encoded(receipts: Iterable[Receipt]) -> list[tuple[str, bytes]]:
    """Receipts as `OutcomeWriter.append` takes them."""
    return [(each.request_id, encode_event(each)) for each in receipts]


def receipt(offset: int = 0, *, topic: str = "t.requests.m", partition: int = 0, **fields: Any) -> Receipt:
    about = {
        "request_id": f"{topic}-{partition}-{offset}",
        "model_name": "m",
        "registry_offset": 7,
        "status": "succeeded",
        "request": Coordinates(topic=topic, partition=partition, offset=offset),
        "input_sha256": hashlib.sha256(b"").hexdigest(),
        "timings_ns": Timings(queue=1),
        "worker": "worker-1",
        "completed_at": "2025-01-01T00:00:00.000000000Z",
    }
    return Receipt(**{**about, **fields})


def log_of(*events: Event | None, first_offset: int = 0) -> list[Entry]:
    """The events as records of the log, one a second."""
    return [Entry(first_offset + n, 1000 * (first_offset + n), event) for n, event in enumerate(events)]


def folded(*events: Event | None) -> Registry:
    registry = Registry()
    for entry in log_of(*events):
        registry = fold(registry, entry)
    return registry
