"""Drawing data sets from the log: the requests of a model as rows, and what is known of their right answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.optimization import LoggedRequests
    from shared.registry import Version


@dataclass(frozen=True)
class Drawn:
    """A data set as a file, and where it was drawn."""

    content: bytes
    rows: int
    offsets: Mapping[str, tuple[int, int]]


class Drawer(Protocol):
    """Whoever draws."""

    async def draw(self, source: LoggedRequests, version: Version) -> Drawn:
        """The data set of a source, for a version."""
