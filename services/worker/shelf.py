"""Variants in memory: loaded and warmed beside whatever runs, evicted least recently used first.

`want` asks for a variant; one loader task fetches, builds and warms them one after the other, off the event loop, and
calls `changed` when the shelf holds something new. What does not load is remembered as a failure for a while, so that
its requests fail quickly and loading is tried again later.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from services.worker.engine import EngineStuck, OnnxEngine
from shared import logs
from shared.errors import AiaasError, ModelNotReady
from shared.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from concurrent.futures import Executor

    from services.worker.settings import WorkerSettings
    from shared.artifacts import ArtifactStore
    from shared.registry import Variant
    from shared.signature import TensorSpec
    from shared.tensors import Array

_RETRY_AFTER_S = 30.0
_WARM_UP_S = 5.0


class Shelf:
    """Engines by artifact digest."""

    def __init__(
        self, settings: WorkerSettings, store: ArtifactStore, executor: Executor, changed: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._executor = executor
        self._changed = changed
        self._engines: OrderedDict[str, tuple[OnnxEngine, int]] = OrderedDict()
        self._failures: dict[str, tuple[float, ModelNotReady]] = {}
        self._wanted: OrderedDict[str, Variant] = OrderedDict()
        self._asked = asyncio.Event()

    def has(self, variant: Variant) -> bool:
        """Whether it is in memory."""
        return variant.artifact.sha256 in self._engines

    def failure(self, variant: Variant) -> ModelNotReady | None:
        """Why it is not, if loading it failed lately."""
        failed_s, error = self._failures.get(variant.artifact.sha256, (0.0, None))
        return error if error and time.monotonic() - failed_s < _RETRY_AFTER_S else None

    def want(self, variant: Variant) -> None:
        """Load it, soon."""
        self._wanted.setdefault(variant.artifact.sha256, variant)
        self._asked.set()

    def take(self, variant: Variant) -> OnnxEngine:
        """The engine of a variant that is in memory, which makes it the most recently used."""
        self._engines.move_to_end(variant.artifact.sha256)
        return self._engines[variant.artifact.sha256][0]

    def held(self) -> dict[str, int]:
        """Model bytes by digest of all that is in memory."""
        return {sha256: size for sha256, (_, size) in self._engines.items()}

    def release(self, digests: Collection[str]) -> None:
        """Let go of these variants. A batch that runs on one keeps it until it is done."""
        for sha256 in digests:
            self._wanted.pop(sha256, None)
            self._failures.pop(sha256, None)
            if self._engines.pop(sha256, None) is not None:
                logs.get().info("variant released", artifact_sha256=sha256[:12])

    async def run(self) -> None:
        """Load what is wanted until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._wanted:
                sha256, variant = next(iter(self._wanted.items()))
                if sha256 not in self._engines:
                    await self._load(sha256, variant)
                self._wanted.pop(sha256, None)
                self._changed()

    async def _load(self, sha256: str, variant: Variant) -> None:
        log = logs.get().bind(variant=variant.name, artifact_sha256=sha256[:12])
        started_s = time.monotonic()
        try:
            content = await self._store.get_bytes(variant.artifact)
            self._make_room(len(content))
            engine = await asyncio.to_thread(OnnxEngine.load, content, variant.signature, self._settings)
            await self._warm(engine, variant)
        except Exception as err:  # noqa: BLE001 - whatever is wrong with one variant must not end the worker
            log.warning("variant not loaded", error=repr(err), retry_after_s=_RETRY_AFTER_S)
            self._failures[sha256] = (time.monotonic(), ModelNotReady(f"the variant did not load: {err}"))
            return
        self._failures.pop(sha256, None)
        self._engines[sha256] = (engine, len(content))
        log.info("variant loaded", seconds=round(time.monotonic() - started_s, 3), provider=engine.runtime.provider)

    def _make_room(self, size_bytes: int) -> None:
        while self._engines and sum(self.held().values()) + size_bytes > self._settings.memory_budget_bytes:
            sha256, _ = self._engines.popitem(last=False)
            logs.get().info("variant evicted", artifact_sha256=sha256[:12])

    async def _warm(self, engine: OnnxEngine, variant: Variant) -> None:
        """One run of zeros, so that the first request does not pay for lazy set-up. The gate has run it before."""
        zeros = {spec.name: _zeros(spec) for spec in variant.signature.inputs}
        try:
            await engine.run(zeros, self._executor, _WARM_UP_S)
        except AiaasError as err:
            logs.get().debug("variant not warmed: it does not run on zeros", error=err.message)
        except EngineStuck as err:
            raise ModelNotReady(str(err)) from err


def _zeros(spec: TensorSpec) -> Array:
    shape = [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=DTYPES[spec.datatype])
