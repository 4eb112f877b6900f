"""The registry as JSON: models, versions and variants with what was measured of them. Shape: docs/monitor.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

if TYPE_CHECKING:
    from shared.registry import Model, Registry, Version


def models(registry: Registry) -> dict[str, Any]:
    """All models, by name."""
    return {
        "registry_offset": registry.offset,
        "models": [_model(model) for _, model in sorted(registry.models.items())],
    }


def _model(model: Model) -> dict[str, Any]:
    return {
        "model": model.name,
        "active": model.active,
        "unloaded": model.unloaded,
        "retired": model.retired,
        "weights": {str(number): weight for number, weight in sorted(model.weights.items())},
        "versions": [_version(version) for _, version in sorted(model.versions.items())],
    }


def _version(version: Version) -> dict[str, Any]:
    ready = [
        {
            "variant": variant.name,
            "state": "ready",
            "reason": variant.reason,
            "batch_cap": variant.batch_cap,
            "byte_size": variant.artifact.byte_size,
            "measurements": to_builtins(variant.measurements, str_keys=True),
        }
        for variant in version.variants.values()
    ]
    rejected = [
        {
            "variant": rejection.variant,
            "state": "rejected",
            "reason": rejection.reason,
            "batch_cap": None,
            "byte_size": None,
            "measurements": to_builtins(rejection.measurements, str_keys=True),
        }
        for rejection in version.rejections
    ]
    return {
        "version": version.number,
        "state": version.state,
        "chosen": version.chosen,
        "parent": version.parent,
        "reason": version.reason,
        "created_at": version.uploaded_ms / 1000,
        "variants": ready + rejected,
    }
