"""What the registry knows, as JSON. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from shared.codec import rfc3339
from shared.processed_signature import public_signature

if TYPE_CHECKING:
    from shared.events import Measurements
    from shared.registry import Model, Rejection, Variant, Version
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


def version_state(model: Model, version: Version) -> dict[str, Any]:
    """A version: how far it is, what was measured, which variant was chosen and why others were not."""
    return {
        "name": model.name,
        "version": version.number,
        "state": version.state,
        "active": model.active == version.number,
        "progress": None,  # how far within a state: nobody collects that yet
        "attempt": version.attempt,
        "sha256": version.artifact.sha256,
        "byte_size": version.artifact.byte_size,
        "format": version.format,
        "processing": None if version.processing is None else to_builtins(version.processing),
        "upload_id": version.upload_id,
        "uploaded_at": rfc3339(version.uploaded_ms * 1_000_000),
        "chosen": version.chosen,
        "code": version.code,
        "reason": version.reason,
        "variants": [_variant(variant, version.chosen) for variant in version.variants.values()],
        "rejected": [_rejection(rejection) for rejection in version.rejections],
    }


def _variant(variant: Variant, chosen: str | None) -> dict[str, Any]:
    return {
        "name": variant.name,
        "chosen": variant.name == chosen,
        "sha256": variant.artifact.sha256,
        "byte_size": variant.artifact.byte_size,
        "batch_cap": variant.batch_cap,
        "measurements": _measurements(variant.measurements),
    }


def _rejection(rejection: Rejection) -> dict[str, Any]:
    return {
        "variant": rejection.variant,
        "reason": rejection.reason,
        "measurements": _measurements(rejection.measurements),
    }


def _measurements(measurements: Measurements | None) -> dict[str, Any] | None:
    return None if measurements is None else to_builtins(measurements)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape}
