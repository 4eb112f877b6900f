"""Rolling Kafka into the archive: outcomes with their requests and results, and the registry's log.

The outcome log leads. For each portion of it: judge the records, fetch the requests of those that count by where they
lie, and their results from Redis; then write when a segment is full or old. Where the archive stands is what its last
manifests say, and nothing else: nothing is committed to Kafka, and a crash means reading again what was not written.

What is held is bounded: a portion whose requests and results would be too many bytes is taken in halves. Kafka, Redis
or the store being away is waited for. Results that Redis has no more are archived as `expired`: it keeps them for
`AIAAS_RESULT_TTL_S`, less as it fills (`shared.keeping`), so an archiver may be away for so long without loss, and for
Kafka's retention without more loss.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeVar

from aiokafka.errors import KafkaError

from services.audit.layout import Gap
from services.audit.request_reader import gather_by
from services.audit.results import results_of
from shared import logs
from shared.errors import LogUnavailable, RepliesUnavailable, StoreUnavailable, TooLarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aiokafka import ConsumerRecord, TopicPartition

    from services.audit.judge import Judge, Judged, Verdict
    from services.audit.kafka_source import Clients
    from services.audit.settings import AuditSettings
    from services.audit.writer import Lane, Writer
    from shared.outcome_events import Receipt

T = TypeVar("T")
_PORTION: Final = 500
_TOGETHER_BYTES: Final = 16 * 1024 * 1024
"""Requests, and results, that are fetched for outcomes taken together."""
_MAX_WAIT_S: Final = 5.0
_GAP_READ: Final = 1000
"""Of a longer gap only so many offsets are looked at: whether there is any record is what counts."""


async def patiently(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until Kafka, Redis and the store answer, with a bounded back-off and a log line that says what for."""
    wait_s = 0.1
    while True:
        try:
            return await attempt()
        except (KafkaError, LogUnavailable, RepliesUnavailable, StoreUnavailable) as err:
            logs.get().warning("waiting", what=what, error=str(err), retry_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)


class Archiver:
    """Archives the partitions in `lanes`; those in `plain` are archived as they are, the others are outcomes."""

    def __init__(
        self,
        settings: AuditSettings,
        clients: Clients,
        judge: Judge,
        writer: Writer,
        lanes: Mapping[TopicPartition, Lane],
        plain: frozenset[TopicPartition],
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._consumer = clients.outcomes
        self._judge = judge
        self._writer = writer
        self._lanes = lanes
        self._plain = plain
        self.lag = 0
        """Records that are in the logs and were not read, as of the last fetch."""

    async def run(self) -> None:
        """Archive until cancelled."""
        self._consumer.assign(list(self._lanes))
        for at, lane in self._lanes.items():
            self._consumer.seek(at, lane.segment.next)
        while True:
            for at, records in (await self._fetch()).items():
                if at in self._plain:
                    for record in records:
                        self._add(self._lanes[at], record, None)
                else:
                    await self._take(self._lanes[at], records)
            for lane in self._lanes.values():
                if lane.segment.records and time.monotonic() - lane.segment.began_s > self._settings.audit_interval_s:
                    await self._write(lane)
            self.lag = sum(
                max((self._consumer.highwater(at) or 0) - lane.segment.next, 0) for at, lane in self._lanes.items()
            )

    async def flush(self) -> None:
        """Write what was read, without waiting for anyone.

        Raises:
            StoreUnavailable: it is read again at the next start.
        """
        for lane in self._lanes.values():
            await self._writer.write(lane)

    async def _fetch(self) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]:
        wait_ms = min(1000, int(self._settings.audit_interval_s * 1000) // 2 + 1)
        fetched: Mapping[TopicPartition, Sequence[ConsumerRecord]] = await patiently(
            "outcomes", lambda: self._consumer.getmany(timeout_ms=wait_ms, max_records=_PORTION)
        )
        return fetched

    async def _take(self, lane: Lane, records: Sequence[ConsumerRecord]) -> None:
        """Records of an outcome partition, in their order."""
        verdicts = await patiently("request ends", lambda: self._judge.judge(records))
        judged, most = list(zip(records, verdicts, strict=True)), self._settings.audit_segment_rows
        for start in range(0, len(judged), most):
            await self._take_judged(lane, judged[start : start + most])

    async def _take_judged(self, lane: Lane, judged: list[tuple[ConsumerRecord, Judged]]) -> None:
        try:
            await patiently("requests and results", lambda: self._gather(lane, judged))
        except TooLarge:
            half = len(judged) // 2
            await self._take_judged(lane, judged[:half])
            await self._take_judged(lane, judged[half:])

    async def _gather(self, lane: Lane, judged: list[tuple[ConsumerRecord, Judged]]) -> None:
        """Add records and what they are about to the lane's segment: all, or nothing if it raises."""
        counted = [(record, v.receipt, v.above) for record, v in judged if v.verdict == "accepted" and v.receipt]
        receipts = [receipt for _, receipt, _ in counted]
        places = [(r.request.topic, r.request.partition, r.request.offset) for r in receipts]
        limit = _TOGETHER_BYTES if len(judged) > 1 else 2**62
        requests = await gather_by(self._clients.requests, places, limit)
        results = await results_of(self._clients.replies, receipts, limit)
        gaps = [gap for _, receipt, above in counted if (gap := await self._gap(receipt, above)) is not None]
        for record, verdict in judged:
            self._add(lane, record, verdict.verdict)
        for (record, receipt, _), place, result in zip(counted, places, results, strict=True):
            lane.segment.add_exchange(record, receipt, requests.get(place, "expired"), result)
            lane.marks[place[:2]] = receipt.request.offset
        lane.segment.gaps += gaps
        if self._full(lane):
            await self._write(lane)

    def _add(self, lane: Lane, record: ConsumerRecord, verdict: Verdict | None) -> None:
        if not lane.segment.records:
            lane.segment.began_s = time.monotonic()
        lane.segment.add(record, verdict)
        lane.chain.add(record.key, record.value)

    def _full(self, lane: Lane) -> bool:
        most = self._settings
        return (
            lane.segment.size_bytes >= most.audit_segment_bytes or len(lane.segment.records) >= most.audit_segment_rows
        )

    async def _write(self, lane: Lane) -> None:
        await patiently("the archive", lambda: self._writer.write(lane))

    async def _gap(self, receipt: Receipt, above: int | None) -> Gap | None:
        """The requests that an outcome passed over, if it did."""
        at, first = receipt.request, 0 if above is None else above + 1
        if first >= at.offset:
            return None
        begin = await self._clients.requests.begins(at.topic, at.partition)
        if above is None and begin > 0:  # what was before the log that we know
            first = min(max(first, begin), at.offset)
            if first == at.offset:
                return None
        records: int | None = None
        if begin <= first:
            end = min(at.offset, first + _GAP_READ)
            records = len(await self._clients.requests.read(at.topic, at.partition, first, end))
        return Gap(topic=at.topic, partition=at.partition, first=first, next=at.offset, records=records)
