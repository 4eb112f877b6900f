"""What the registry knows, as JSON. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.codec import rfc3339

if TYPE_CHECKING:
    from shared.events import Measurements
    from shared.registry import Model, Rejection, Variant, Version
    from shared.signature import TensorSpec


def model_metadata(model: Model, version: Version) -> dict[str, Any]:
    """OIP's model metadata, with the inputs and outputs of one version. Versions are strings there."""
    signature = version.serving.signature
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
    """Which versions answer requests that name none: the active one, or several by weight."""
    return {
        "name": model.name,
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
    return None if measurements is None else measurements.model_dump(mode="json")


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape}
