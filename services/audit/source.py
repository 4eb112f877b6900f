"""Where recorded outcomes come from: one interface over Kafka and the archive.

    async with joined_source.open_source(settings) as source:       # what is there: the archive, and Kafka's rest
    async with kafka_source.open_source(settings) as source:        # what Kafka and Redis still have
    async with archive_source.open_source(settings) as source:      # what the archive has
        async for outcome in source.outcomes(Selection(model="m", since_ms=…, until_ms=…)):
            …

All give outcomes that count, once each, merged over the log's partitions by the time at which they were appended (in
log order within a partition). Members of one batch, which may lie in several partitions, so come close together: they
are appended within moments of each other. Memory is bounded by a portion of each partition. `registry` gives the
registry's log, to fold up to a receipt's `registry_offset`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from services.audit.records import RecordedOutcome, Selection
    from shared.registry import Entry

T = TypeVar("T")


class Source(Protocol):
    """Recorded outcomes and the registry's log."""

    def outcomes(self, selection: Selection) -> AsyncIterator[RecordedOutcome]:
        """The accepted outcomes that are selected, with their requests and results.

        Raises (while iterating):
            LogUnavailable, RepliesUnavailable, StoreUnavailable: a server did not answer.
            DigestMismatch: a file of the archive is not what its manifest says.
        """

    def registry(self) -> AsyncIterator[Entry]:
        """The registry's log from its beginning, as it is at this moment; unreadable records have no event."""


async def merged(streams: Sequence[AsyncIterator[T]], key: Callable[[T], int]) -> AsyncIterator[T]:
    """Items of all streams, each time the one with the least key among those that come next; one of each is held."""
    heads = [(stream, await anext(stream, None)) for stream in streams]
    waiting = [(stream, head) for stream, head in heads if head is not None]
    while waiting:
        index = min(range(len(waiting)), key=lambda number: key(waiting[number][1]))
        stream, head = waiting[index]
        yield head
        following = await anext(stream, None)
        if following is None:
            del waiting[index]
        else:
            waiting[index] = stream, following
