"""Reading requests back by where they lie, range by range.

One consumer without a group, which holds at most `_HELD` partitions and fetches only while somebody waits for it: the
others are paused. So it costs nothing between two reads, and holds a fetch a partition at most, which also bounds what
a poll gives. Offsets that Kafka does not give (expired, or never a record: transactions have markers) are absent from
what is returned.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from services.audit.records import RecordedRequest
from shared.errors import LogUnavailable, TooLarge
from shared.outcome_events import Coordinates

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import AIOKafkaConsumer, ConsumerRecord

    from services.audit.records import At

_HELD: Final = 16
_STALLED_S: Final = 20.0
_POLL_MS: Final = 500
_MOST_BYTES: Final = 64 * 1024 * 1024


class RequestReader:
    """Reads ranges of request partitions that are known to exist. Calls must not overlap."""

    def __init__(self, consumer: AIOKafkaConsumer, cluster_id: str | None) -> None:
        self._consumer = consumer
        self._cluster_id = cluster_id
        self._held: dict[TopicPartition, None] = {}
        """The most recently read last."""

    async def read(
        self, topic: str, partition: int, first: int, end: int, limit_bytes: int = _MOST_BYTES
    ) -> list[RecordedRequest]:
        """The requests from `first` up to but not including `end`, in order. The partition must reach to `end`.

        Raises:
            TooLarge: they are more than `limit_bytes`, and more than one.
            LogUnavailable: Kafka did not give them in time.
        """
        at = TopicPartition(topic, partition)
        try:
            return [self._recorded(record) for record in await self._range(at, first, end, limit_bytes)]
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not give requests of {topic}/{partition}: {err!r}") from err

    async def begins(self, topic: str, partition: int) -> int:
        """The offset of the earliest request that Kafka has kept.

        Raises:
            LogUnavailable: Kafka did not tell.
        """
        at = TopicPartition(topic, partition)
        try:
            return int((await self._consumer.beginning_offsets([at]))[at])
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not tell the beginning of {topic}/{partition}: {err!r}") from err

    async def _range(self, at: TopicPartition, first: int, end: int, limit_bytes: int) -> list[ConsumerRecord]:
        await self._hold(at)
        if await self._consumer.position(at) != first:
            self._consumer.seek(at, first)
        self._consumer.resume(at)
        records: list[ConsumerRecord] = []
        stalled_s, position, size_bytes = time.monotonic() + _STALLED_S, first, 0
        try:
            while position < end:
                fetched = await self._consumer.getmany(at, timeout_ms=_POLL_MS, max_records=end - position)
                some = [record for record in fetched.get(at, ()) if first <= record.offset < end]
                records += some
                size_bytes += sum([len(record.value or b"") for record in some])
                if size_bytes > limit_bytes and len(records) > 1:
                    raise TooLarge(f"requests of {at.topic}/{at.partition} are more than {limit_bytes} bytes")
                before, position = position, await self._consumer.position(at)
                if position > before:
                    stalled_s = time.monotonic() + _STALLED_S
                elif time.monotonic() > stalled_s:
                    raise LogUnavailable(f"Kafka gives nothing of {at.topic}/{at.partition} from offset {position}")
        finally:
            self._consumer.pause(at)
        return records

    async def _hold(self, at: TopicPartition) -> None:
        """Have the partition assigned, in the place of the one that was not read for longest."""
        if at in self._held:
            self._held[at] = self._held.pop(at)
            return
        if len(self._held) == _HELD:
            del self._held[next(iter(self._held))]
        positions = {held: await self._consumer.position(held) for held in self._held}
        self._held[at] = None
        self._consumer.assign(list(self._held))
        self._consumer.pause(*self._held)
        for held, position in positions.items():
            self._consumer.seek(held, position)
        self._consumer.seek(at, 0)

    def _recorded(self, record: ConsumerRecord) -> RecordedRequest:
        where = Coordinates(
            cluster_id=self._cluster_id, topic=record.topic, partition=record.partition, offset=record.offset
        )
        return RecordedRequest(where, record.timestamp, record.key, tuple(record.headers), record.value)


def ranges(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Growing offsets as runs without a gap, each from its first to behind its last."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and found[-1][1] == offset:
            found[-1] = found[-1][0], offset + 1
        else:
            found.append((offset, offset + 1))
    return found


async def gather_by(
    reader: RequestReader, wanted: Iterable[At], limit_bytes: int = _MOST_BYTES
) -> dict[At, RecordedRequest]:
    """The requests at these places, as far as Kafka has them.

    Raises:
        TooLarge, LogUnavailable: as `RequestReader.read`, over all of them.
    """
    by_partition: dict[tuple[str, int], list[int]] = {}
    for topic, partition, offset in wanted:
        by_partition.setdefault((topic, partition), []).append(offset)
    found: dict[At, RecordedRequest] = {}
    for (topic, partition), offsets in by_partition.items():
        for first, end in ranges(sorted(set(offsets))):
            for request in await reader.read(topic, partition, first, end, limit_bytes):
                found[topic, partition, request.coordinates.offset] = request
                limit_bytes -= len(request.value or b"")
    return found
