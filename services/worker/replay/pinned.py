"""Artefacts that replays run on: the bytes of a digest, from the store, checked, apart from what serves.

What a live engine holds in memory says nothing about what lies in the store, so an artefact is loaded once for each
audit and variant. A few are kept at a time, the least recently used goes first, and their bytes count in the shelf's
memory budget, of which they take up to half, or one artefact. They go when no replay has come for a while.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.worker.engine import load
from services.worker.processing.processor import Processor
from shared import logs
from shared.errors import DigestMismatch, TooLarge

if TYPE_CHECKING:
    from services.worker.engine import Engine
    from services.worker.settings import WorkerSettings
    from services.worker.shelf import Shelf
    from shared.artifacts import ArtifactStore
    from shared.registry import Variant
    from shared.replay_events import ReplayRequested

_MOST: Final = 4
_Key = tuple[str, bool, Hashable]


@dataclass(frozen=True, slots=True)
class PinnedVariant:
    """An artefact that replays run on."""

    variant: Variant
    engine: Engine
    processor: Processor | None
    sha256: str
    """Of the bytes that were loaded."""
    byte_size: int


class Pinned:
    """The engines of replays, by audit and variant."""

    def __init__(self, settings: WorkerSettings, store: ArtifactStore, shelf: Shelf) -> None:
        self._settings = settings
        self._store = store
        self._shelf = shelf
        self._loaded: OrderedDict[_Key, PinnedVariant] = OrderedDict()

    async def get(self, asked: ReplayRequested, variant: Variant) -> PinnedVariant:
        """The variant as the audit asks for it.

        Raises:
            DigestMismatch: the variant is not the one of the request, or the store's bytes are not its.
            ArtifactNotFound, StoreUnavailable: the store does not have it.
            TooLarge: it is above the memory budget.
            ModelNotReady: it does not load.
        """
        if (variant.artifact.sha256, variant.processing_sha256) != (asked.artifact_sha256, asked.processing_sha256):
            raise DigestMismatch(f"variant {variant.name!r} is not of the artefact and processing that were recorded")
        variant = dataclasses.replace(variant, runtime=asked.runtime_config)
        key = (asked.replay_id, asked.digest_check, variant.key)
        if key not in self._loaded:
            self._loaded[key] = await self._load(asked, variant)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def clear(self) -> None:
        """Let go of all of them."""
        if self._loaded:
            self._loaded.clear()
            self._shelf.lend(0)

    async def _load(self, asked: ReplayRequested, variant: Variant) -> PinnedVariant:
        budget_bytes = self._settings.memory_budget_bytes
        if variant.artifact.byte_size > budget_bytes:
            raise TooLarge(f"the artefact has {variant.artifact.byte_size} bytes, more than AIAAS_MEMORY_BUDGET_BYTES")
        self._make_room(variant.artifact.byte_size, budget_bytes // 2)
        if asked.digest_check:
            content = await self._store.get_bytes(variant.artifact)
        else:
            content = await self._store.get_as_it_is(variant.artifact, limit_bytes=budget_bytes)
        engine = await asyncio.to_thread(load, content, variant, self._settings, deterministic=True)
        processor = None
        if variant.processing is not None:
            processor = await Processor.load(variant.processing, variant.signature, self._store)
        sha256 = hashlib.sha256(content).hexdigest()
        logs.get().info("variant pinned for a replay", replay=asked.replay_id, artifact_sha256=sha256[:12])
        return PinnedVariant(variant, engine, processor, sha256, len(content))

    def _make_room(self, size_bytes: int, limit_bytes: int) -> None:
        while self._loaded and (len(self._loaded) >= _MOST or self._held_bytes() + size_bytes > limit_bytes):
            self._loaded.popitem(last=False)
        self._shelf.lend(self._held_bytes() + size_bytes)

    def _held_bytes(self) -> int:
        return sum(pinned.byte_size for pinned in self._loaded.values())
