"""Whether requests for a model would be answered now: the registry routes them, and live workers hold what they need.

A pure function of the registry and the heartbeats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import ModelNotReady
from shared.runtime_config import ONNXRUNTIME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shared.heartbeat_events import Heartbeat
    from shared.registry import Registry, Version


def check(registry: Registry, alive: Iterable[Heartbeat], model: str, number: int | None = None) -> None:
    """Return if a request for the model (or for its version `number`) would find a worker that is ready for it.

    Raises:
        UnknownModel, UnknownVersion, ModelRejected, ModelRetired: and it will not change by waiting.
        ModelNotReady: it may be ready later.
        ModelNotLoaded: it will be once somebody loads it.
    """
    alive = list(alive)
    held = {
        (loaded.model, loaded.version, loaded.variant, loaded.artifact_sha256)
        for beat in alive
        if beat.service == "worker"
        for loaded in beat.loaded
    }
    for version in _answering(registry, model, number):
        variant = version.serving
        if (model, version.number, variant.name, variant.artifact.sha256) not in held:
            check_engine(version, alive)
            what = f"no live worker holds version {version.number} ({variant.name}) of {model!r} yet"
            if variant.engine != ONNXRUNTIME:
                variable = f"AIAAS_{version.program_format.upper()}_TENANTS"
                what += f"; workers load such files only of tenants in their {variable}"
            raise ModelNotReady(what)


def check_engine(version: Version, alive: Iterable[Heartbeat]) -> None:
    """Return if a live worker has the engine of a version that is ready.

    Raises:
        ModelNotReady: none has.
    """
    if (missing := lacks_engine(version, alive)) is not None:
        raise ModelNotReady(missing)


def lacks_engine(version: Version, alive: Iterable[Heartbeat]) -> str | None:
    """In a sentence, which engine a ready version needs and no live worker has."""
    engine = version.serving.engine
    if engine == ONNXRUNTIME or any(beat.service == "worker" and engine in beat.machine.engines for beat in alive):
        return None
    return (
        f"version {version.number} of {version.model!r} needs the engine {engine!r}, which no live worker has: start "
        "one with that extra installed"
    )


def described(registry: Registry, model: str, number: int | None = None) -> Version:
    """The version that stands for a model where it is described: the one named, or the active one.

    Raises:
        UnknownModel, UnknownVersion, ModelRejected, ModelRetired, ModelNotReady, ModelNotLoaded: it does not answer.
    """
    return registry.route(model, "", number if number is not None else registry.model(model).active)


def _answering(registry: Registry, model: str, number: int | None) -> list[Version]:
    """The versions that a request may meet: the one named, every one with weight, or the active one."""
    weights = registry.model(model).weights
    if number is None and any(weights.values()):
        return [registry.route(model, "", n) for n, weight in weights.items() if weight]
    return [registry.route(model, "", number)]
