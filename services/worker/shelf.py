"""Variants in memory: loaded and warmed beside whatever runs, evicted least recently used first.

A variant is an engine and, where steps before and after the model are declared, the processor that does them.

`want` asks for a variant; one loader task fetches, builds and warms them one after the other, off the event loop, and
calls `changed` when the shelf holds something new. A variant that is configured anew is another one here, so its
session is built beside the one that runs; `keep_only` lets go of the latter. What does not load is remembered as a
failure for a while, so that its requests fail quickly and loading is tried again later.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.worker.engine import EngineStuck, load
from services.worker.processing.processor import Processor
from shared import logs
from shared.errors import AiaasError, ModelNotLoaded, ModelNotReady
from shared.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from concurrent.futures import Executor

    from services.worker.engine import Engine
    from services.worker.settings import WorkerSettings
    from shared.artifacts import ArtifactStore
    from shared.outcome_events import Runtime
    from shared.registry import Variant
    from shared.signature import TensorSpec
    from shared.tensors import Array

    Key = tuple[str, str | None, str | None]

_RETRY_AFTER_S = 30.0
_WARM_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class _Loaded:
    engine: Engine
    processor: Processor | None
    byte_size: int


class Shelf:
    """Engines, and processors with them, by `Variant.key`."""

    def __init__(
        self, settings: WorkerSettings, store: ArtifactStore, executor: Executor, changed: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._executor = executor
        self._changed = changed
        self._loaded: OrderedDict[Key, _Loaded] = OrderedDict()
        self._failures: dict[Key, tuple[float, ModelNotReady]] = {}
        self._wanted: OrderedDict[Key, Variant] = OrderedDict()
        self._released: AbstractSet[str] = frozenset()
        self._lent_bytes = 0
        """Of the budget, used by what is not on the shelf."""
        self._asked = asyncio.Event()
        self._settled = asyncio.Condition()
        """Notified when something was loaded, or was not."""

    def has(self, variant: Variant) -> bool:
        """Whether it is in memory."""
        return variant.key in self._loaded

    def failure(self, variant: Variant) -> ModelNotReady | None:
        """Why it is not, if loading it failed lately."""
        failed_s, error = self._failures.get(variant.key, (0.0, None))
        return error if error and time.monotonic() - failed_s < _RETRY_AFTER_S else None

    def want(self, variant: Variant) -> None:
        """Load it, soon; not if it was released."""
        if variant.artifact.sha256 not in self._released:
            self._wanted.setdefault(variant.key, variant)
            self._asked.set()

    def take(self, variant: Variant) -> Engine:
        """The engine of a variant that is in memory, which makes it the most recently used."""
        self._loaded.move_to_end(variant.key)
        return self._loaded[variant.key].engine

    def processor(self, variant: Variant) -> Processor | None:
        """The steps around a variant that is in memory, if any are declared."""
        return self._loaded[variant.key].processor

    async def loaded_processor(self, variant: Variant) -> Processor | None:
        """As `processor`, once the variant is in memory.

        Raises:
            ModelNotReady: it did not load.
            ModelNotLoaded: it was released.
        """
        async with self._settled:
            while not self.has(variant):
                if error := self.failure(variant):
                    raise error
                if variant.artifact.sha256 in self._released:
                    raise ModelNotLoaded(f"variant {variant.name!r} is of a model that was unloaded")
                self.want(variant)
                await self._settled.wait()
        return self.processor(variant)

    def held(self) -> dict[Key, int]:
        """Bytes of all that is in memory, by `Variant.key`."""
        return {key: loaded.byte_size for key, loaded in self._loaded.items()}

    def lend(self, size_bytes: int) -> None:
        """So much of the budget is used, now and until the next call, by what is not on the shelf."""
        self._lent_bytes = size_bytes
        self._make_room(0)

    def runtimes(self) -> dict[Key, tuple[int, Runtime]]:
        """Bytes of all that is in memory and what runs it, by `Variant.key`."""
        return {key: (loaded.byte_size, loaded.engine.runtime) for key, loaded in self._loaded.items()}

    def keep_only(self, wanted: AbstractSet[Key]) -> None:
        """Let go of sessions that were built with other options than anybody wants now.

        A batch that runs on one keeps it until it is done.
        """
        files = {key[:2] for key in wanted}
        for key in [key for key in self._loaded if key[:2] in files and key not in wanted]:
            del self._loaded[key]
            logs.get().info("session replaced", artifact_sha256=key[0][:12])

    def release(self, digests: AbstractSet[str]) -> None:
        """Let go of these variants, and load none of them until this is called without it.

        A batch that runs on one keeps it until it is done.
        """
        if digests != self._released:
            self._released = digests
            self._asked.set()  # who waits for one of them is told
        for key in [key for key in (*self._wanted, *self._failures, *self._loaded) if key[0] in digests]:
            self._wanted.pop(key, None)
            self._failures.pop(key, None)
            if self._loaded.pop(key, None) is not None:
                logs.get().info("variant released", artifact_sha256=key[0][:12])

    async def run(self) -> None:
        """Load what is wanted until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            async with self._settled:
                self._settled.notify_all()
            while self._wanted:
                key, variant = next(iter(self._wanted.items()))
                if key not in self._loaded:
                    await self._load(key, variant)
                self._wanted.pop(key, None)
                async with self._settled:
                    self._settled.notify_all()
                self._changed()

    async def _load(self, key: Key, variant: Variant) -> None:
        log = logs.get().bind(variant=variant.name, artifact_sha256=key[0][:12])
        started_s = time.monotonic()
        try:
            content = await self._store.get_bytes(variant.artifact)
            size_bytes = len(content) + _assets_bytes(variant)
            self._make_room(size_bytes)
            engine = await asyncio.to_thread(load, content, variant, self._settings)
            await self._warm(engine, variant)
            processor = None
            if variant.processing is not None:
                processor = await Processor.load(variant.processing, variant.signature, self._store)
        except Exception as err:  # noqa: BLE001 - whatever is wrong with one variant must not end the worker
            log.warning("variant not loaded", error=repr(err), retry_after_s=_RETRY_AFTER_S)
            self._failures[key] = (time.monotonic(), ModelNotReady(f"the variant did not load: {err}"))
            return
        self._failures.pop(key, None)
        self._loaded[key] = _Loaded(engine, processor, size_bytes)
        log.info("variant loaded", seconds=round(time.monotonic() - started_s, 3), provider=engine.runtime.provider)

    def _make_room(self, size_bytes: int) -> None:
        while self._loaded and self._held_bytes() + size_bytes > self._settings.memory_budget_bytes:
            key, _ = self._loaded.popitem(last=False)
            logs.get().info("variant evicted", artifact_sha256=key[0][:12])

    def _held_bytes(self) -> int:
        return sum(self.held().values()) + self._lent_bytes

    async def _warm(self, engine: Engine, variant: Variant) -> None:
        """One run of zeros, so that the first request does not pay for lazy set-up. The gate has run it before."""
        zeros = {spec.name: _zeros(spec) for spec in variant.signature.inputs}
        try:
            await engine.run(zeros, self._executor, _WARM_UP_S)
        except AiaasError as err:
            logs.get().debug("variant not warmed: it does not run on zeros", error=err.message)
        except EngineStuck as err:
            raise ModelNotReady(str(err)) from err


def _assets_bytes(variant: Variant) -> int:
    """What its steps take from the store."""
    processing = variant.processing
    return 0 if processing is None else sum(artifact.byte_size for artifact in processing.artifacts)


def _zeros(spec: TensorSpec) -> Array:
    shape = [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=DTYPES[spec.datatype])
