"""How a version was configured to run, as of any offset of the registry's log: receipts name the offset."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from typing import TYPE_CHECKING

from shared.registry import Registry, fold

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from shared.registry import Entry
    from shared.runtime_config import RuntimeConfig


class Configurations:
    """Every configuration that each version ever had. Build it with `read`."""

    def __init__(self) -> None:
        self._known: defaultdict[tuple[str, int], list[tuple[int, RuntimeConfig | None]]] = defaultdict(list)

    @classmethod
    async def read(cls, entries: AsyncIterable[Entry]) -> Configurations:
        """From the registry's log."""
        made, registry = cls(), Registry()
        async for entry in entries:
            before, registry = registry, fold(registry, entry)
            made._note(before, registry)
        return made

    def at(self, model: str, version: int, offset: int) -> RuntimeConfig | None:
        """The configuration as of an offset; None: none was given until then."""
        known = self._known.get((model, version), [])
        place = bisect_right(known, offset, key=lambda each: each[0])
        return known[place - 1][1] if place else None

    def _note(self, before: Registry, after: Registry) -> None:
        for name, model in after.models.items():
            if model is before.models.get(name):
                continue
            for number, version in model.versions.items():
                known = self._known[name, number]
                if version.runtime != (known[-1][1] if known else None):
                    known.append((after.offset, version.runtime))
