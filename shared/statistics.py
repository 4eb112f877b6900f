"""The statistics of every version, as the monitor last published them on `statistics`.

The monitor owns the numbers (it folds the outcome log); who shows them follows its cumulative events. So they may be a
second behind, and each says the offsets at which it is exact.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from shared import compacted, logs, topics
from shared.outcome_events import ModelStatistics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shared.settings import PlatformSettings

MAX_VERSIONS: Final = 10_000
"""Versions held; the monitor publishes fewer."""


class Statistics:
    """The last event of every version. Build it with `follow`."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], ModelStatistics] = {}

    def of(self, model: str, version: int) -> ModelStatistics | None:
        """A version's numbers; None if no request to it has an outcome yet."""
        return self._last.get((model, version))

    def heard(self, event: ModelStatistics) -> None:
        """Take in an event: the later in the log counts."""
        key = event.model, event.version
        if key not in self._last and len(self._last) >= MAX_VERSIONS:
            logs.get().warning("statistics ignored: too many versions", model=event.model, version=event.version)
            return
        self._last[key] = event


@asynccontextmanager
async def follow(settings: PlatformSettings) -> AsyncIterator[Statistics]:
    """Follow `statistics` for as long as this is entered."""
    statistics = Statistics()
    async with compacted.followed(settings, topics.STATISTICS, ModelStatistics, lambda e, _: statistics.heard(e)):
        yield statistics
