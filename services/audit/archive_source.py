"""What the archive has, as a `services.audit.source.Source`: every cluster, every life of the log, oldest first.

A segment is read when its manifest says that it may have what is wanted: by time, and by model. Held at a time is one
segment a partition.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from services.audit import archive_reader
from services.audit.judge import read
from services.audit.records import RecordedOutcome, RecordedRequest
from services.audit.source import merged
from services.audit.store import ArchiveStore
from shared import registry_log, topics
from shared.codec import unpack
from shared.errors import InvalidInput
from shared.outcome_events import Coordinates
from shared.results import Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.audit.layout import Log, Manifest
    from services.audit.records import Gone, Selection
    from services.audit.tables import Row
    from shared.outcome_events import Receipt
    from shared.registry import Entry
    from shared.settings import PlatformSettings


class ArchiveSource:
    """Build it with `open_source`."""

    def __init__(self, settings: PlatformSettings, store: ArchiveStore) -> None:
        self._names = settings.topics
        self._store = store

    async def outcomes(self, selection: Selection) -> AsyncIterator[RecordedOutcome]:
        """See `Source.outcomes`."""
        for log in await self.logs():
            async for outcome in self.outcomes_of(log, selection):
                yield outcome

    async def logs(self) -> list[Log]:
        """The outcome logs that are archived."""
        return await archive_reader.logs_of(self._store, self._names.name(topics.OUTCOMES))

    async def outcomes_of(self, log: Log, selection: Selection) -> AsyncIterator[RecordedOutcome]:
        """What is selected of one log; raises as `Source.outcomes`."""
        partitions = await archive_reader.partitions_of(self._store, log)
        streams = [self.partition(log, number, selection) for number in partitions]
        async for outcome in merged(streams, lambda outcome: outcome.timestamp_ms):
            yield outcome

    async def registry(self) -> AsyncIterator[Entry]:
        """See `Source.registry`: of the log that was archived last. After a restore it holds all that was before."""
        logs = await archive_reader.logs_of(self._store, self._names.name(topics.MODELS))
        if log := await archive_reader.latest(self._store, logs):
            async for manifest in archive_reader.manifests(self._store, log, 0):
                for row in await self._records(manifest):
                    headers = tuple((name, value) for name, value in unpack(row["headers"]))
                    yield registry_log.entry_of(row["offset"], row["timestamp_ms"], headers, row["value"])

    async def partition(
        self, log: Log, partition: int, selection: Selection, end: int | None = None
    ) -> AsyncIterator[RecordedOutcome]:
        """What is selected of one partition, in log order; up to a segment that begins at `end`."""
        async for manifest in archive_reader.manifests(self._store, log, partition):
            if end is not None and manifest.first >= end:
                return
            if _may_have(manifest, selection):
                exchanges = await self._exchanges(manifest, selection)
                for row in await self._records(manifest):
                    found = self._outcome(log, partition, row, exchanges, selection)
                    if found is not None:
                        yield found

    def _outcome(
        self, log: Log, partition: int, row: Row, exchanges: dict[int, Row], selection: Selection
    ) -> RecordedOutcome | None:
        if row["verdict"] != "accepted":
            return None
        receipt = read(row["key"], row["value"], self._names)
        if receipt is None or not selection.wants(receipt, row["timestamp_ms"]):
            return None
        about = exchanges.get(row["offset"], {})
        return RecordedOutcome(
            log=str(log),
            partition=partition,
            offset=row["offset"],
            timestamp_ms=row["timestamp_ms"],
            key=row["key"],
            value=row["value"],
            receipt=receipt,
            request=request_of(about, receipt, log.cluster_id) if about else "expired",
            result=result_of(about) if about else "expired",
        )

    async def _records(self, manifest: Manifest) -> list[Row]:
        return [
            row
            for file in manifest.files
            if file.kind == "records"
            for row in await archive_reader.rows(self._store, file)
        ]

    async def _exchanges(self, manifest: Manifest, selection: Selection) -> dict[int, Row]:
        """Rows of requests and results by the offset of their outcome."""
        found: dict[int, Row] = {}
        for file in manifest.files:
            if file.kind == "exchanges" and not file.expired and selection.model in {None, file.model}:
                for row in await archive_reader.rows(self._store, file):
                    found[row["outcome_offset"]] = row
        return found


@asynccontextmanager
async def open_source(settings: PlatformSettings) -> AsyncIterator[ArchiveSource]:
    """The source, for as long as it is needed. Neither Kafka nor Redis has to be there."""
    yield ArchiveSource(settings, ArchiveStore(settings.artifact_store_url))


def _may_have(manifest: Manifest, selection: Selection) -> bool:
    """Whether a segment may have what is wanted."""
    return (
        (selection.since_ms is None or manifest.last_ms >= selection.since_ms)
        and (selection.until_ms is None or manifest.first_ms < selection.until_ms)
        and (selection.model is None or any(file.model == selection.model for file in manifest.files))
    )


def request_of(row: Row, receipt: Receipt, cluster_id: str) -> RecordedRequest | Gone:
    """The request of a row.

    Raises:
        InvalidInput: its headers are damaged.
    """
    if row["request_state"] != "present":
        gone: Gone = row["request_state"]
        return gone
    at = receipt.request
    where = Coordinates(cluster_id=cluster_id, topic=at.topic, partition=at.partition, offset=at.offset)
    headers = tuple((name, value) for name, value in _pairs(row["request_headers"]))
    return RecordedRequest(where, row["request_timestamp_ms"], row["request_key"], headers, row["request_value"])


def result_of(row: Row) -> Result | Gone:
    """The result of a row.

    Raises:
        InvalidInput: it is damaged.
    """
    if row["result_state"] != "present":
        gone: Gone = row["result_state"]
        return gone
    return Result.decode(row["result"])


def _pairs(packed: bytes) -> list[tuple[str, bytes | None]]:
    pairs: Any = unpack(packed)
    try:
        return [(name, value) for name, value in pairs]
    except (TypeError, ValueError) as err:
        raise InvalidInput(f"headers in the archive are no pairs: {err}") from err
