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
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from aiokafka.errors import KafkaError

from shared.errors import LogUnavailable
from shared.steady_producer import SteadyProducer

if TYPE_CHECKING:
    from aiokafka.producer.message_accumulator import BatchBuilder

    from services.gateway.settings import GatewaySettings
    from shared.codec import Headers

_ON_THEIR_WAY: Final = 2
"""Batches of one topic: the broker is never idle, and what comes meanwhile piles up into the next."""
_LOOK_S: Final = 0.25
_BATCH_BYTES: Final = 512 * 1024
"""Half of what the broker takes as a batch; a larger record goes alone."""


class Written(NamedTuple):
    """Where a record lies."""

    partition: int
    offset: int


class Appended(Protocol):
    """Who waits for a record to be acknowledged: a future, or what looks like one."""

    def done(self) -> bool:
        """Whether it waits no more."""

    def set_result(self, written: Written, /) -> None:
        """It is."""

    def set_exception(self, error: BaseException, /) -> None:
        """It is not, or not in time."""


class _Record(NamedTuple):
    key: bytes
    value: bytes
    headers: Headers
    written: Appended


class RequestLog:
    """Appends to request topics, which must exist, through a producer of its own."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._steady = SteadyProducer(settings, "requests", batch_bytes=_BATCH_BYTES)
        self._timeout_s = settings.produce_timeout_s
        self._queues: dict[str, _Queue] = {}
        self._waits: deque[tuple[float, Appended]] = deque()
        """What was appended lately, and when it is late: one timer for all, since all have the same time."""
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._steady.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._steady.__aexit__(*exc)

    async def appended(self, topic: str, key: bytes, value: bytes, headers: Headers) -> Written:
        """Append a record, and wait for its acknowledgement.

        Raises:
            LogUnavailable: it did not come, or not in time; the record may be in the log all the same.
        """
        written: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        self.append(topic, key, value, headers, written)
        return await written

    def append(self, topic: str, key: bytes, value: bytes, headers: Headers, written: Appended) -> None:
        """Append a record; `written` is told what `appended` returns or raises, unless it is done before that."""
        queue = self._queues.get(topic)
        if queue is None:
            queue = self._queues[topic] = _Queue(topic, self._steady)
        queue.append(_Record(key, value, headers, written))
        loop = asyncio.get_running_loop()
        self._waits.append((loop.time() + self._timeout_s, written))
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """End the waits that took too long, forget those that are over."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._waits and (self._waits[0][1].done() or self._waits[0][0] <= now_s):
            _, written = self._waits.popleft()
            if not written.done():
                written.set_exception(LogUnavailable("Kafka did not acknowledge the request in time"))
        self._timer = loop.call_later(_LOOK_S, self._look) if self._waits else None


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

    def append(self, record: _Record) -> None:
        self._records.append(record)
        if not self._awake and len(self._sending) < _ON_THEIR_WAY:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._send)  # when all that this turn of the loop brings has arrived

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
