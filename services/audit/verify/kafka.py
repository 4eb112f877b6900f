"""Verifying what Kafka still has: the chain where the archive knows it, completeness, and digests.

Completeness: every request below the offset that its model's workers have committed has exactly one accepted outcome.
An offset without outcome is looked at: where Kafka has no record (transactions leave such offsets), none is owed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from services.audit import layout
from services.audit.chain import Chain
from services.audit.kafka_source import KafkaSource, kafka_offsets, log_partitions, log_portions
from services.audit.records import RecordedRequest, Selection
from shared import topics
from shared.errors import LogUnavailable
from shared.results import Result

if TYPE_CHECKING:
    from services.audit.kafka_source import Clients
    from services.audit.verify.archive import Walks
    from services.audit.verify.report import Report
    from services.audit.verify.segment import Walk
    from shared.settings import PlatformSettings

Partition = tuple[str, int]
_LOOKED_AT: Final = 50
"""Offsets without outcome that are read at a time."""


class KafkaVerifier:
    """Verifies what is in Kafka and Redis into a report."""

    def __init__(self, settings: PlatformSettings, clients: Clients, report: Report) -> None:
        self._settings = settings
        self._clients = clients
        self._report = report
        self._accepted: dict[Partition, list[tuple[int, int]]] = {}
        """Offsets with an outcome, as ranges, by request partition."""

    async def verify(self, walks: Walks, *, digests: bool = True) -> None:
        """Verify all. `walks` is where the archive stands, if there is one.

        Raises:
            LogUnavailable, RepliesUnavailable: Kafka or Redis did not answer.
        """
        for log in (topics.OUTCOMES, topics.MODELS):
            await self._chains(self._settings.topics.name(log), walks)
        begins: dict[Partition, int] = {}
        async for outcome in KafkaSource(self._settings, self._clients).outcomes(Selection()):
            topic, number, offset = outcome.at
            _extend(self._accepted.setdefault((topic, number), []), offset)
            self._report.counts["kafka_outcomes"] += 1
            if not digests:
                continue
            at = f"{topic}/{number} offset {offset}"
            if isinstance(outcome.request, RecordedRequest):
                self._report.counts["kafka_requests"] += 1
                same = outcome.request.input_sha256 == outcome.receipt.input_sha256
                self._report.expect(same, "request", at, "its bytes are not those of the receipt's input_sha256")
            else:
                if (topic, number) not in begins:
                    begins[topic, number] = await self._clients.requests.begins(topic, number)
                self._report.expect(offset < begins[topic, number], "request", at, "Kafka has lost it")
                self._report.counts["kafka_requests_expired"] += 1
            self._report.counts[
                f"redis_results{'' if isinstance(outcome.result, Result) else '_' + outcome.result}"
            ] += 1
        await self._completeness()

    async def _chains(self, topic: str, walks: Walks) -> None:
        """Recompute the chain from the first offset whose head is known."""
        consumer = self._clients.outcomes
        partitions = await log_partitions(self._clients.admin, topic)
        begins = await kafka_offsets(consumer, partitions, "beginning")
        ends = await kafka_offsets(consumer, partitions, "end")
        cluster = layout.cluster_name(self._clients.cluster_id)
        lives = [log for log, _ in walks if (log.cluster_id, log.topic) == (cluster, topic)]
        for at in partitions:
            walk = walks.get((max(lives), at.partition)) if lives else None
            if walk is None or walk.next is None:
                continue
            if ends[at] < walk.next:
                self._report.note(
                    f"{topic}/{at.partition} ends at {ends[at]} in Kafka and at {walk.next} in the archive"
                )
                continue
            await self._chain(at, begins[at], walk)

    async def _chain(self, at: TopicPartition, begin: int, walk: Walk) -> None:
        start = min((offset for offset in (0, *walk.heads) if offset >= begin), default=None)
        if start is None or walk.next is None or start >= walk.next:
            return
        chain = Chain(bytes.fromhex(walk.heads[start])) if start else Chain()
        self._clients.outcomes.assign([at])
        self._clients.outcomes.seek(at, start)
        boundaries = sorted(offset for offset in walk.heads if offset > start)
        position = start
        async for portion in log_portions(self._clients.outcomes, at, start, walk.next):
            for record in portion:
                while boundaries and record.offset >= boundaries[0]:
                    position = self._boundary(at, chain, position, boundaries.pop(0), walk)
                chain.add(record.key, record.value)
        for boundary in boundaries:
            position = self._boundary(at, chain, position, boundary, walk)

    def _boundary(self, at: TopicPartition, chain: Chain, position: int, boundary: int, walk: Walk) -> int:
        where = f"{at.topic}/{at.partition} [{position}, {boundary}) in Kafka"
        same = chain.head.hex() == walk.heads[boundary]
        self._report.expect(same, "chain", where, "the records are not those that were archived")
        chain.head = bytes.fromhex(walk.heads[boundary])
        self._report.counts["kafka_segments_compared"] += 1
        return boundary

    async def _completeness(self) -> None:
        prefix = self._settings.topics.name(topics.REQUESTS)
        try:
            described = await self._clients.admin.describe_topics()
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not describe its topics: {err!r}") from err
        whole = await self._all_outcomes_kept()
        for topic in sorted(found["topic"] for found in described if found["topic"].startswith(prefix)):
            committed = await self._committed(topic)
            for at, end in committed.items():
                await self._complete(at, end, whole=whole)

    async def _all_outcomes_kept(self) -> bool:
        partitions = await log_partitions(self._clients.admin, self._settings.topics.name(topics.OUTCOMES))
        begins = await kafka_offsets(self._clients.outcomes, partitions, "beginning")
        return not any(begins.values())

    async def _committed(self, topic: str) -> dict[TopicPartition, int]:
        """Up to where each partition owes outcomes: what its group committed, and what has an outcome behind it."""
        group = self._settings.topics.worker_group(self._settings.topics.model_of(topic))
        owed = {TopicPartition(*at): found[-1][1] for at, found in self._accepted.items() if at[0] == topic}
        try:
            offsets = await self._clients.admin.list_consumer_group_offsets(group)
        except KafkaError as err:  # the embedded broker has no such request
            self._report.note(f"completeness of {topic} up to its last outcome only: {err!r}")
            return owed
        for at, found in offsets.items():
            if at.topic == topic:
                owed[at] = max(owed.get(at, 0), found.offset)
        return owed

    async def _complete(self, at: TopicPartition, committed: int, *, whole: bool) -> None:
        """Every request of the partition below `committed` has an outcome."""
        requests, accepted = self._clients.requests, self._accepted.get((at.topic, at.partition), [])
        position = await requests.begins(at.topic, at.partition)
        if not whole and accepted and accepted[0][0] > position:
            self._report.note(f"{at.topic}/{at.partition}: outcomes of requests below {accepted[0][0]} have expired")
            position = accepted[0][0]
        elif not whole and not accepted:
            return
        for first, end in [*accepted, (committed, committed)]:
            stop = min(first, committed)
            while position < stop:
                some = min(stop, position + _LOOKED_AT)
                owed = await requests.read(at.topic, at.partition, position, some)
                offsets = [request.coordinates.offset for request in owed]
                where = f"{at.topic}/{at.partition} offsets {offsets[:5]}"
                self._report.expect(not owed, "completeness", where, f"{len(owed)} request(s) have no outcome")
                position = some
            position = max(position, end)


def _extend(ranges: list[tuple[int, int]], offset: int) -> None:
    """Offsets come in growing order."""
    if ranges and ranges[-1][1] == offset:
        ranges[-1] = ranges[-1][0], offset + 1
    else:
        ranges.append((offset, offset + 1))
