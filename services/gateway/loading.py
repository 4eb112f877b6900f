"""Load and unload: a fact on the registry's log, and then the heartbeats of the workers, which say that it was done.

A heartbeat says at which offset of the log its worker holds what it holds, so one that was written before the fact is
never taken for its consequence. Which workers there are is what the heartbeats of the living say: with none alive,
nothing is held, and nothing gets loaded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.gateway import readiness, repository
from services.gateway.repository_index import holders
from shared.errors import ModelNotReady, Unfinished

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.gateway.gateway import Backbone
    from shared.heartbeat_events import Heartbeat
    from shared.heartbeats import Heartbeats
    from shared.registry import Model


async def load(backbone: Backbone, name: str, timeout_s: float) -> Model:
    """Let a model answer; returns when live workers hold the versions that requests are routed to.

    Raises:
        UnknownModel, ModelRetired, ModelRejected: and waiting does not help.
        ModelNotLoaded: somebody unloaded it again.
        Unfinished: it is to be loaded, but no worker had it in time.
    """
    model = await repository.load(backbone.log, name)
    offset = backbone.log.registry.offset
    missing = ""

    def loaded(alive: list[Heartbeat]) -> bool:
        nonlocal missing
        try:
            readiness.check(backbone.log.registry, [beat for beat in alive if beat.registry_offset >= offset], name)
        except ModelNotReady as err:
            missing = err.message
            return False
        return True

    await _seen(backbone.heartbeats, loaded, timeout_s, lambda: f"model {name!r} is not loaded yet: {missing}")
    return model


async def unload(backbone: Backbone, name: str, timeout_s: float) -> Model:
    """Let a model answer no more; returns when no live worker holds any of it.

    Raises:
        UnknownModel: there is no such model.
        Unfinished: it answers no more, but some worker did not say in time that it let go of it.
    """
    model = await repository.unload(backbone.log, name)
    offset = backbone.log.registry.offset

    def remaining(alive: list[Heartbeat]) -> list[str]:
        behind = [beat for beat in alive if beat.service == "worker" and beat.registry_offset < offset]
        return sorted({beat.instance for beat in (*behind, *holders(alive, name))})

    def late() -> str:
        return f"model {name!r} is unloaded, but not yet told by {remaining(backbone.heartbeats.alive())}"

    await _seen(backbone.heartbeats, lambda alive: not remaining(alive), timeout_s, late)
    return model


async def _seen(
    heartbeats: Heartbeats, done: Callable[[list[Heartbeat]], bool], timeout_s: float, late: Callable[[], str]
) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await heartbeats.until(done)
    except TimeoutError as err:
        raise Unfinished(late()) from err
