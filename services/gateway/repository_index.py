"""The repository index of Triton's model repository extension: every version, and whether it can answer now. Pure.

READY says what `GET /v2/models/{m}/versions/{v}/ready` says: the registry routes to it and a live worker holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.gateway import readiness
from shared.errors import AiaasError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.heartbeat_events import Heartbeat, LoadedModel
    from shared.registry import Model, Registry, Version


def index(registry: Registry, alive: Sequence[Heartbeat], *, only_ready: bool = False) -> list[dict[str, Any]]:
    """By name and version; `reason` is empty for what is ready."""
    entries = [
        _entry(registry, alive, model, version)
        for _, model in sorted(registry.models.items())
        for _, version in sorted(model.versions.items())
    ]
    return [entry for entry in entries if not only_ready or entry["state"] == "READY"]


def holders(alive: Sequence[Heartbeat], model: str) -> list[Heartbeat]:
    """The live workers that hold anything of a model."""
    return [beat for beat in alive if beat.service == "worker" and any(held.model == model for held in beat.loaded)]


def _entry(registry: Registry, alive: Sequence[Heartbeat], model: Model, version: Version) -> dict[str, Any]:
    state, reason = _state(registry, alive, model, version)
    return {"name": model.name, "version": str(version.number), "state": state, "reason": reason}


def _state(registry: Registry, alive: Sequence[Heartbeat], model: Model, version: Version) -> tuple[str, str]:
    try:
        readiness.check(registry, alive, model.name, version.number)
    except AiaasError as err:
        if model.unloaded and any(held.version == version.number for held in _held(alive, model.name)):
            return "UNLOADING", err.message
        comes_by_itself = not model.unloaded and not model.retired and _will_be_loaded(model, version)
        return "LOADING" if comes_by_itself else "UNAVAILABLE", err.message
    return "READY", ""


def _held(alive: Sequence[Heartbeat], model: str) -> list[LoadedModel]:
    return [held for beat in holders(alive, model) for held in beat.loaded if held.model == model]


def _will_be_loaded(model: Model, version: Version) -> bool:
    """Whether workers load it without being asked for it: on its way through the gate, or routed to."""
    if version.state in {"uploaded", "optimizing"}:
        return True
    weighted = [number for number, weight in model.weights.items() if weight]
    routed = version.number in weighted if weighted else version.number == model.active
    return version.state == "ready" and routed
