"""A version as Triton's `ModelConfig` has it, in JSON: what its clients and perf_analyzer read to build requests.

Only what the registry and the heartbeats say; `workers`, which Triton does not have, is the latter in full.
`max_batch_size` is above 0 where the gate proved that rows do not hurt each other and every tensor has its rows along
axis 0: only then has Triton's word for it, "the first dimension is the batch and not told in `dims`", the same meaning
here. It is how many rows may share a run; a request may have more, and then runs alone. Elsewhere it is 0 and `dims`
are whole shapes, also where we batch along another axis.

Field names: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from services.gateway.runtime import GPU_PROVIDERS, holders, instances
from shared.runtime_config import ONNXRUNTIME, TORCH, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shared.heartbeat_events import Heartbeat
    from shared.registry import Model, Version
    from shared.signature import Signature, TensorSpec

PRIORITY_LEVELS: Final = 2
"""1 goes first, 2 is where a request without a priority goes."""
_IMAGE_RANK: Final = 3
_CHANNELS: Final = (1, 3)
_PLATFORMS: Final = {ONNXRUNTIME: "onnxruntime_onnx", TORCH: "pytorch_libtorch"}
_BACKENDS: Final = {ONNXRUNTIME: "onnxruntime", TORCH: "pytorch"}


def model_config(model: Model, version: Version, signature: Signature, alive: Iterable[Heartbeat]) -> dict[str, Any]:
    """The configuration of a ready version. `signature` is the one that callers are shown."""
    alive = list(alive)
    engine = version.serving.engine
    batch_size = max_batch_size(signature, version.serving.row_cap)
    config = {
        "name": model.name,
        "platform": _PLATFORMS.get(engine, engine),
        "backend": _BACKENDS.get(engine, engine),
        "version_policy": {"specific": {"versions": ready_versions(model)}},
        "max_batch_size": batch_size,
        "input": [
            _tensor(spec, batch_size)
            | {"format": _layout(_dims(spec, batch_size)), "is_shape_tensor": False, "optional": False}
            for spec in signature.inputs
        ],
        "output": [_tensor(spec, batch_size) | {"is_shape_tensor": False} for spec in signature.outputs],
        "instance_group": _instances(model, version, alive),
        "default_model_filename": f"model.{version.format}",
        "model_transaction_policy": {"decoupled": False},
        "workers": holders(model, version, alive),
    }
    said = {} if version.serving.runtime is None else shown(version.serving.runtime)
    config |= {name: said[name] for name in ("parameters", "optimization") if name in said}
    if batch_size:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": 0,  # what queued up while the lane was busy; nothing is waited for
            "priority_levels": PRIORITY_LEVELS,
            "default_priority_level": PRIORITY_LEVELS,
        }
    return config


def max_batch_size(signature: Signature, batch_cap: int) -> int:
    """Rows of one run, 0 where Triton's meaning of a batch does not hold."""
    along_first = all(spec.batch_axis == 0 for spec in (*signature.inputs, *signature.outputs))
    return batch_cap if batch_cap > 1 and along_first else 0


def ready_versions(model: Model) -> list[int]:
    """The versions that can be asked for by number."""
    return [number for number, version in sorted(model.versions.items()) if version.state == "ready"]


def _tensor(spec: TensorSpec, batch_size: int) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": _dims(spec, batch_size)}


def _dims(spec: TensorSpec, batch_size: int) -> list[int]:
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return dims[1:] if batch_size else dims


def _layout(dims: Sequence[int]) -> str:
    """How a picture lies, where the dims can mean nothing else: channels first or last. No model file says it."""
    if len(dims) != _IMAGE_RANK or (dims[0] in _CHANNELS) == (dims[2] in _CHANNELS):
        return "FORMAT_NONE"
    return "FORMAT_NCHW" if dims[0] in _CHANNELS else "FORMAT_NHWC"


def _instances(model: Model, version: Version, alive: Iterable[Heartbeat]) -> list[dict[str, Any]]:
    """The parts of a batch that the live workers that hold the version run at once, by kind of device."""
    counts = {"KIND_GPU": 0, "KIND_CPU": 0}
    sha256 = version.serving.artifact.sha256
    for beat in alive:
        about = (model.name, version.number, sha256)
        held = [each for each in beat.loaded if (each.model, each.version, each.artifact_sha256) == about]
        if beat.service == "worker" and held:
            on = {held[0].provider} if held[0].provider else set(beat.machine.providers)
            counts["KIND_GPU" if GPU_PROVIDERS & on else "KIND_CPU"] += instances(version)
    return [
        {"name": f"{model.name}_{kind[5:].lower()}", "kind": kind, "count": count}
        for kind, count in counts.items()
        if count
    ]
