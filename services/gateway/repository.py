"""What callers do to models: upload a version, promote, roll back, split traffic, retire, load, unload.

Each is an event on the registry's log, read back before the caller is answered. Whether it can be done is asked of the
registry's own rules: the event is folded into the present registry first, and what would change nothing is a conflict
and never written, since that log is kept for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shared import events as ev
from shared.errors import Conflict, InvalidInput, LogUnavailable, ModelNotReady
from shared.registry import Entry, fold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.gateway.gateway import Backbone
    from shared.optimization import Optimization
    from shared.processing import Processing
    from shared.registry import Model, Registry, Version
    from shared.registry_log import RegistryLog
    from shared.runtime_config import RuntimeConfig

_PRESENT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Upload:
    """A version to be.

    Attributes:
        version: the number asked for.
        sha256: what the file's digest must be, if the caller said so.
        processing: the steps before and after the model.
        optimization: data, policy and candidates.
        runtime: how workers are to run it.
    """

    model: str
    version: int | None
    sha256: str | None
    tenant: str | None
    processing: Processing | None = None
    optimization: Optimization | None = None
    runtime: RuntimeConfig | None = None


async def upload(backbone: Backbone, asked: Upload, chunks: AsyncIterator[bytes], limit_bytes: int) -> Version:
    """Stream the file to the store, then tell the log; returns the version that the fold made of it.

    Raises:
        Conflict: the version asked for is taken.
        InvalidInput: the file is empty.
        TooLarge, DigestMismatch, StoreUnavailable, LogUnavailable: and whatever `chunks` raises.
    """
    known = backbone.log.registry.models.get(asked.model)
    if known is not None and asked.version in known.versions:
        raise _taken(asked)  # before gigabytes are sent for nothing; the fold decides all the same
    artifact = await backbone.store.put_stream(chunks, limit_bytes=limit_bytes, expected_sha256=asked.sha256)
    if not artifact.byte_size:
        raise InvalidInput("the body is empty: it must be the model file")
    event = ev.ModelUploaded(
        model=asked.model,
        upload_id=str(uuid.uuid4()),
        artifact=artifact,
        requested_version=asked.version,
        tenant=asked.tenant,
        processing=asked.processing,
        optimization=asked.optimization,
        runtime=asked.runtime,
    )
    registry = await backbone.log.publish(event)
    number = registry.model(asked.model).uploads[event.upload_id]
    if number is None:
        raise _taken(asked)
    return registry.version(asked.model, number)


async def promote(log: RegistryLog, model: str, number: int) -> Model:
    """Let a version answer requests that name none; returns the model after it."""
    registry = await _present(log)
    version = registry.version(model, number)
    return await _change(
        log,
        registry,
        ev.ModelPromoted(model=model, version=number),
        done=lambda m: m.active == number and not m.weights,
        refusal=f"version {number} of model {model!r} {version.why_not_promoted or 'can not be promoted'}",
    )


async def roll_back(log: RegistryLog, model: str) -> Model:
    """Let the version answer that did before; a traffic split just ends. Returns the model after it."""
    return await _change(
        log,
        await _present(log),
        ev.ModelRolledBack(model=model),
        done=lambda _: False,
        refusal=f"model {model!r} has no earlier version that is still ready",
    )


async def split(log: RegistryLog, model: str, weights: dict[int, int]) -> Model:
    """Spread requests that name no version by weight; an empty map ends the split. Returns the model after it."""
    registry = await _present(log)
    unready = [n for n, weight in weights.items() if weight and registry.version(model, n).state != "ready"]
    return await _change(
        log,
        registry,
        ev.TrafficSplit(model=model, weights=weights),
        done=lambda m: m.weights == weights,
        refusal=f"versions {unready} of model {model!r} are not ready: they can't take traffic",
    )


async def retire(log: RegistryLog, model: str, number: int | None = None) -> Model:
    """End a version, or the whole model; returns the model after it."""
    registry = await _present(log)
    if number is not None:
        registry.version(model, number)
    return await _change(
        log,
        registry,
        ev.ModelRetired(model=model, version=number),
        done=lambda m: m.retired if number is None else m.versions[number].state == "retired",
        refusal=f"model {model!r} can't be retired",
    )


async def load(log: RegistryLog, model: str) -> Model:
    """Let an unloaded model answer again; returns the model after it.

    Raises:
        ModelRetired, ModelRejected: nothing of it would answer.
    """
    registry = await _present(log)
    loaded = fold(registry, Entry(registry.offset + 1, 0, ev.ModelLoaded(model=model)))
    with contextlib.suppress(ModelNotReady):  # it may become ready: then it answers
        loaded.route(model, "")
    return await _change(
        log,
        registry,
        ev.ModelLoaded(model=model),
        done=lambda m: not m.unloaded,
        refusal=f"model {model!r} can't be loaded",
    )


async def unload(log: RegistryLog, model: str) -> Model:
    """Let a model answer no more until it is loaded; returns the model after it."""
    return await _change(
        log,
        await _present(log),
        ev.ModelUnloaded(model=model),
        done=lambda m: m.unloaded,
        refusal=f"model {model!r} can't be unloaded",
    )


async def _change(
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


async def _present(log: RegistryLog) -> Registry:
    """The registry with all that is in the log now."""
    try:
        async with asyncio.timeout(_PRESENT_TIMEOUT_S):
            return await log.caught_up()
    except TimeoutError as err:
        raise LogUnavailable("Kafka did not tell the end of the registry's log in time") from err


def _taken(asked: Upload) -> Conflict:
    return Conflict(
        f"version {asked.version} of model {asked.model!r} is taken: leave the number out, or ask for another"
    )
