"""Changes of which version of a model answers: promote, roll back, and what every such change has in common.

Each is an event on the registry's log, read back before the caller is told. Whether it can be done is asked of the
registry's own rules: the event is folded into the present registry first, and what would change nothing is a conflict
and never written, since that log is kept for ever. Who may ask is the business of who offers it: gateway and monitor.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from shared import events as ev
from shared.errors import Conflict, LogUnavailable
from shared.registry import Entry, fold

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.registry import Model, Registry
    from shared.registry_log import RegistryLog

_PRESENT_TIMEOUT_S: Final = 5.0


async def promote(log: RegistryLog, model: str, number: int) -> Model:
    """Let a version answer requests that name none; returns the model after it."""
    registry = await present(log)
    version = registry.version(model, number)
    return await change(
        log,
        registry,
        ev.ModelPromoted(model=model, version=number),
        done=lambda m: m.active == number and not m.weights,
        refusal=f"version {number} of model {model!r} {version.why_not_promoted or 'can not be promoted'}",
    )


async def roll_back(log: RegistryLog, model: str) -> Model:
    """Let the version answer that did before; a traffic split just ends. Returns the model after it."""
    return await change(
        log,
        await present(log),
        ev.ModelRolledBack(model=model),
        done=lambda _: False,
        refusal=f"model {model!r} has no earlier version that is still ready",
    )


async def change(
    log: RegistryLog, registry: Registry, event: ev.ModelEvent, *, done: Callable[[Model], bool], refusal: str
) -> Model:
    """Publish an event that changes how a model is routed, unless it is `done` already.

    Raises:
        UnknownModel: there is no such model.
        Conflict: the event would change nothing (`refusal`), or another change came at the same moment.
        LogUnavailable: Kafka did not take it, or did not give it back.
    """
    before = registry.model(event.model)
    if done(before):
        return before
    wanted = _routing(fold(registry, Entry(registry.offset + 1, 0, event)).model(event.model))
    if wanted == _routing(before):
        raise Conflict(refusal)
    after = (await log.publish(event)).model(event.model)
    if _routing(after) != wanted:
        raise Conflict(f"another change of model {event.model!r} came at the same moment: look, and try again")
    return after


def _routing(model: Model) -> tuple[Any, ...]:
    """All of a model that such events change."""
    retired = {number for number, version in model.versions.items() if version.state == "retired"}
    return model.active, dict(model.weights), model.retired, model.unloaded, retired


async def present(log: RegistryLog) -> Registry:
    """The registry with all that is in the log now."""
    try:
        async with asyncio.timeout(_PRESENT_TIMEOUT_S):
            return await log.caught_up()
    except TimeoutError as err:
        raise LogUnavailable("Kafka did not tell the end of the registry's log in time") from err
