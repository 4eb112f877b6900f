"""What the registry knows, as JSON. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from shared.codec import rfc3339
from shared.processed_signature import public_signature
from shared.registry import CANONICAL
from shared.runtime_config import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from shared.events import Measurements
    from shared.metric_events import JobProgressed
    from shared.registry import Model, Rejection, Step, Variant, Version
    from shared.signature import Signature, TensorSpec


def shown_signature(version: Version) -> Signature:
    """What callers are told that a ready version takes and gives."""
    own = version.serving.signature
    return own if version.processing is None else public_signature(version.processing, own)


def model_metadata(model: Model, version: Version) -> dict[str, Any]:
    """OIP's model metadata, with the inputs and outputs of one version. Versions are strings there."""
    signature = shown_signature(version)
    return {
        "name": model.name,
        "versions": [str(number) for number, other in sorted(model.versions.items()) if other.state == "ready"],
        "platform": version.format,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def model_state(model: Model) -> dict[str, Any]:
    """A model and all its versions, the newest first."""
    return {
        "name": model.name,
        "retired": model.retired,
        "policy": to_builtins(model.policy),
        **routing(model),
        "versions": [version_state(model, version) for _, version in sorted(model.versions.items(), reverse=True)],
    }


def routing(model: Model) -> dict[str, Any]:
    """Which versions answer requests that name none: the active one, or several by weight. Unloaded: none does."""
    return {
        "name": model.name,
        "unloaded": model.unloaded,
        "active": model.active,
        "previous": list(model.previous),
        "weights": {str(number): weight for number, weight in sorted(model.weights.items())},
    }


def version_state(
    model: Model,
    version: Version,
    progress: JobProgressed | None = None,
    points: Mapping[str, tuple[int, float]] | None = None,
    waits_for: str | None = None,
) -> dict[str, Any]:
    """A version: how far it is, what was measured, which variant was chosen and why others were not."""
    return {
        "name": model.name,
        "version": version.number,
        "state": version.state,
        "active": model.active == version.number,
        "progress": _progress(version, progress, points or {}),
        "attempt": version.attempt,
        "sha256": version.artifact.sha256,
        "byte_size": version.artifact.byte_size,
        "format": version.format,
        "recognised": version.recognised,
        "needs": list(version.needs),
        "waits_for": waits_for,
        "conversion": _conversion(version),
        "processing": None if version.processing is None else to_builtins(version.processing),
        "upload_id": version.upload_id,
        "uploaded_at": rfc3339(version.uploaded_ms * 1_000_000),
        "chosen": version.chosen,
        "code": version.code,
        "reason": version.reason,
        "parent": version.parent,
        "training": to_builtins(version.training),
        "optimization": to_builtins(version.optimization),
        "runtime": None if version.runtime is None else shown(version.runtime),
        "comparison": to_builtins(version.comparison),
        "steps": [_step(step) for step in version.steps.values()],
        "variants": [_variant(variant, version.chosen) for variant in version.variants.values()],
        "rejected": [_rejection(rejection) for rejection in version.rejections],
    }


def waits_for(version: Version, tools: Sequence[Collection[str]]) -> str | None:
    """In a sentence, what a version waits for that no optimizer of those that are up has; `tools` are theirs."""
    if version.state != "uploaded" or not version.needs or any(set(version.needs) <= set(held) for held in tools):
        return None
    libraries = " and ".join(version.needs)
    return (
        f"the upload is {version.recognised}, which an optimizer converts that has {libraries}; of the {len(tools)} "
        "that are up none has: start one with the extra that brings them (docs/formats.md), or upload ONNX"
    )


def _conversion(version: Version) -> dict[str, Any] | None:
    step = version.steps.get(CANONICAL)
    return None if step is None or step.conversion is None else to_builtins(step.conversion)


def _variant(variant: Variant, chosen: str | None) -> dict[str, Any]:
    return {
        "name": variant.name,
        "chosen": variant.name == chosen,
        "sha256": variant.artifact.sha256,
        "byte_size": variant.artifact.byte_size,
        "engine": variant.engine,
        "batch_cap": variant.batch_cap,
        "measurements": _measurements(variant.measurements),
        "provenance": to_builtins(variant.provenance),
        "reason": variant.reason,
    }


def _rejection(rejection: Rejection) -> dict[str, Any]:
    return {
        "variant": rejection.variant,
        "reason": rejection.reason,
        "measurements": _measurements(rejection.measurements),
        "provenance": to_builtins(rejection.provenance),
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "seconds": step.seconds,
        "sha256": None if step.file is None else step.file.sha256,
        "reused_from": to_builtins(step.reused_from),
    }


def _progress(
    version: Version, told: JobProgressed | None, points: Mapping[str, tuple[int, float]]
) -> dict[str, Any] | None:
    """Where the attempt is that counts, if it told."""
    if told is None or version.state != "optimizing" or told.attempt != version.attempt:
        return None
    return {
        "step": told.step,
        "fraction": told.fraction,
        "remaining_s": told.remaining_s,
        "points": {name: {"step": at, "value": value} for name, (at, value) in points.items()},
    }


def _measurements(measurements: Measurements | None) -> dict[str, Any] | None:
    return None if measurements is None else to_builtins(measurements)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape}
