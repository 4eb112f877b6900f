"""What callers do to models: upload a version, split traffic, retire, load, unload.

Each is an event on the registry's log, read back before the caller is answered. How an event that changes the routing
is looked at first, and promoting and rolling back, which the monitor's dashboard offers too: `shared.routing_changes`.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared import events as ev
from shared.errors import Conflict, InvalidInput, ModelNotReady
from shared.registry import Entry, fold
from shared.routing_changes import change, present

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.gateway.gateway import Backbone
    from shared.optimization import Optimization
    from shared.processing import Processing
    from shared.registry import Model, Version
    from shared.registry_log import RegistryLog
    from shared.runtime_config import RuntimeConfig


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


async def split(log: RegistryLog, model: str, weights: dict[int, int]) -> Model:
    """Spread requests that name no version by weight; an empty map ends the split. Returns the model after it."""
    registry = await present(log)
    unready = [n for n, weight in weights.items() if weight and registry.version(model, n).state != "ready"]
    return await change(
        log,
        registry,
        ev.TrafficSplit(model=model, weights=weights),
        done=lambda m: m.weights == weights,
        refusal=f"versions {unready} of model {model!r} are not ready: they can't take traffic",
    )


async def retire(log: RegistryLog, model: str, number: int | None = None) -> Model:
    """End a version, or the whole model; returns the model after it."""
    registry = await present(log)
    if number is not None:
        registry.version(model, number)
    return await change(
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
    registry = await present(log)
    loaded = fold(registry, Entry(registry.offset + 1, 0, ev.ModelLoaded(model=model)))
    with contextlib.suppress(ModelNotReady):  # it may become ready: then it answers
        loaded.route(model, "")
    return await change(
        log,
        registry,
        ev.ModelLoaded(model=model),
        done=lambda m: not m.unloaded,
        refusal=f"model {model!r} can't be loaded",
    )


async def unload(log: RegistryLog, model: str) -> Model:
    """Let a model answer no more until it is loaded; returns the model after it."""
    return await change(
        log,
        await present(log),
        ev.ModelUnloaded(model=model),
        done=lambda m: m.unloaded,
        refusal=f"model {model!r} can't be unloaded",
    )


def _taken(asked: Upload) -> Conflict:
    return Conflict(
        f"version {asked.version} of model {asked.model!r} is taken: leave the number out, or ask for another"
    )
