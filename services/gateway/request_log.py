"""Appending requests to their topics, many at a time.

What arrives while appends are on their way waits for them and goes together, as one record batch: no delay when it is
quiet, few and full batches when it is not. That is what makes a request cheap here, in the broker and in the workers,
whose batches begin with what one fetch brings.

Requests of one gateway need no order among themselves, so a batch goes to whichever partition has none on its way, in
turn. `send_batch` appends a batch whole or not at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from aiokafka.errors import KafkaError

from shared.errors import LogUnavailable
from shared.steady_producer import SteadyProducer

if TYPE_CHECKING:
    from aiokafka.producer.message_accumulator import BatchBuilder

    from shared.codec import Headers
    from shared.settings import PlatformSettings

_ON_THEIR_WAY: Final = 2
"""Batches of one topic: the broker is never idle, and what comes meanwhile piles up into the next."""
_BATCH_BYTES: Final = 512 * 1024
"""Half of what the broker takes as a batch; a larger record goes alone."""


class Written(NamedTuple):
    """Where a record lies."""

    partition: int
    offset: int


class _Record(NamedTuple):
    key: bytes
    value: bytes
    headers: Headers
    written: asyncio.Future[Written]


class RequestLog:
    """Appends to request topics, which must exist, through a producer of its own."""

    def __init__(self, settings: PlatformSettings) -> None:
        self._steady = SteadyProducer(settings, "requests", batch_bytes=_BATCH_BYTES)
        self._queues: dict[str, _Queue] = {}

    async def __aenter__(self) -> Self:
        await self._steady.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._steady.__aexit__(*exc)

    async def append(self, topic: str, key: bytes, value: bytes, headers: Headers, timeout_s: float) -> Written:
        """Append a record; returns where it lies when it is acknowledged.

        Raises:
            LogUnavailable: it was not, or not in time. It may be in the log all the same.
        """
        queue = self._queues.get(topic)
        if queue is None:
            queue = self._queues[topic] = _Queue(topic, self._steady)
        written = queue.append(key, value, headers)
        timer = asyncio.get_running_loop().call_later(timeout_s, _late, written)
        try:
            return await written
        finally:
            timer.cancel()


def _late(written: asyncio.Future[Written]) -> None:
    if not written.done():
        written.set_exception(LogUnavailable("Kafka did not acknowledge the request in time"))


class _Queue:
    """The records of one topic that are not sent yet."""

    def __init__(self, topic: str, steady: SteadyProducer) -> None:
        self._topic = topic
        self._steady = steady
        self._records: deque[_Record] = deque()
        self._partitions: list[int] = []
        self._turn = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._awake = False

    def append(self, key: bytes, value: bytes, headers: Headers) -> asyncio.Future[Written]:
        loop = asyncio.get_running_loop()
        written: asyncio.Future[Written] = loop.create_future()
        self._records.append(_Record(key, value, headers, written))
        if not self._awake and len(self._sending) < _ON_THEIR_WAY:
            self._awake = True
            loop.call_soon(self._send)  # when all that this turn of the loop brings has arrived
        return written

    def _send(self) -> None:
        self._awake = False
        if self._records and len(self._sending) < _ON_THEIR_WAY:
            task = asyncio.create_task(self._send_batch())
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._send()

    async def _send_batch(self) -> None:
        producer, taken = self._steady.producer, list[_Record]()
        try:
            partition = await self._next_partition()
            builder = producer.create_batch()
            while self._records and (self._records[0].written.done() or _added(builder, self._records[0])):
                record = self._records.popleft()
                if not record.written.done():  # else its caller has gone
                    taken.append(record)
            if taken:
                acknowledged = await (await producer.send_batch(builder, self._topic, partition=partition))
                for index, record in enumerate(taken):
                    if not record.written.done():
                        record.written.set_result(Written(partition, acknowledged.offset + index))
        except KafkaError as err:
            for record in taken:
                if not record.written.done():
                    record.written.set_exception(LogUnavailable(f"Kafka did not acknowledge the request: {err!r}"))
            await self._steady.replace(producer)

    async def _next_partition(self) -> int:
        if not self._partitions:
            self._partitions = sorted(await self._steady.producer.partitions_for(self._topic))
        self._turn += 1
        return self._partitions[self._turn % len(self._partitions)]


def _added(builder: BatchBuilder, record: _Record) -> bool:
    """Whether the batch still took the record; an empty one takes any."""
    return builder.append(key=record.key, value=record.value, timestamp=None, headers=record.headers) is not None
