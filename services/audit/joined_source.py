"""What is there, wherever it is: what is archived from the archive, the rest from Kafka and Redis.

The archive has requests and results beside their outcomes for as long as it is told to keep them, Kafka and Redis for
days and an hour: so what is archived is read there, though Kafka may have it too. What the archiver has not written yet
(the last seconds, or all that was since it stopped) is read from Kafka, from the offset at which the archive of each
partition ends, with its watermarks. A log in Kafka that does not go on where the archive ends is another one, and is
read from its beginning.

The registry's log is read from Kafka, which keeps it for ever; from the archive if Kafka has lost it. If Kafka does not
answer, the archive is all there is, and a warning says so.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from services.audit import archive_reader, archive_source, kafka_source
from services.audit.kafka_source import KafkaSource, Start
from services.audit.opening import standing
from services.audit.source import merged
from services.audit.store import ArchiveStore
from shared import logs, topics
from shared.errors import LogUnavailable
from shared.outcomes import Watermarks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.audit.archive_source import ArchiveSource
    from services.audit.kafka_source import Clients
    from services.audit.records import RecordedOutcome, Selection
    from services.audit.source import Source
    from shared.registry import Entry
    from shared.settings import PlatformSettings


class JoinedSource:
    """Build it with `open_source`. One iteration at a time, as of Kafka's."""

    def __init__(self, settings: PlatformSettings, archive: ArchiveSource, clients: Clients) -> None:
        self._topic = settings.topics.name(topics.OUTCOMES)
        self._store = ArchiveStore(settings.artifact_store_url)
        self._archive = archive
        self._clients = clients
        self._kafka = KafkaSource(settings, clients)

    async def outcomes(self, selection: Selection) -> AsyncIterator[RecordedOutcome]:
        """See `Source.outcomes`."""
        clients = self._clients
        log, last, _, goes_on = await standing(
            self._store, clients.admin, clients.outcomes, clients.cluster_id, self._topic
        )
        for other in await self._archive.logs():
            if other != log or not goes_on:
                async for outcome in self._archive.outcomes_of(other, selection):
                    yield outcome
        ends = {at: found[0] for at, found in last.items() if found is not None and goes_on}
        starts = {at: Start(end.next, Watermarks(archive_reader.marks_of(end))) for at, end in ends.items()}
        rest = await self._kafka.streams(selection, starts)
        numbers = await archive_reader.partitions_of(self._store, log) if goes_on else []
        archived = {
            at: self._archive.partition(log, at.partition, selection, ends[at].next if at in ends else None)
            for at in (TopicPartition(self._topic, number) for number in numbers)
        }
        streams = [
            _one_after_the_other([part[at] for part in (archived, rest) if at in part])
            for at in sorted({*archived, *rest})
        ]
        async for outcome in merged(streams, lambda outcome: outcome.timestamp_ms):
            yield outcome

    async def registry(self) -> AsyncIterator[Entry]:
        """See `Source.registry`."""
        there = False
        async for entry in self._kafka.registry():
            there = True
            yield entry
        if not there:
            async for entry in self._archive.registry():
                yield entry


async def _one_after_the_other(streams: list[AsyncIterator[RecordedOutcome]]) -> AsyncIterator[RecordedOutcome]:
    for stream in streams:
        async for outcome in stream:
            yield outcome


@asynccontextmanager
async def open_source(settings: PlatformSettings) -> AsyncIterator[Source]:
    """The source, for as long as it is needed. Kafka need not be there."""
    async with AsyncExitStack() as stack:
        archive = await stack.enter_async_context(archive_source.open_source(settings))
        source: Source = archive
        try:
            source = JoinedSource(settings, archive, await stack.enter_async_context(kafka_source.reached(settings)))
        except LogUnavailable as err:
            logs.get().warning("only the archive is read", error=err.message)
        yield source
