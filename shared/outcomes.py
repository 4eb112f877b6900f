"""The outcome log: exactly one outcome per request, without transactions.

Outcomes are keyed by request `topic/partition`, so all outcomes of a request partition lie in one partition of
`outcomes`. Every writer starts at a committed offset below which all outcomes are acknowledged, and appends a
contiguous run in request-offset order, one append in flight, each a single batch, the next only after the
acknowledgement. So crashes and zombies append repeats, never a gap, and

    a reader accepts an outcome iff its request offset is above the highest it has accepted for that request partition.

One integer per request partition makes it exact. What is deliberately missing: retries here. After a failed append
nobody knows what was written; the caller drops what follows and starts again at the committed offset.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from shared import kafka, logs, topics
from shared.codec import cloud_event_headers, decode_event, encode_event
from shared.errors import InvalidInput, LogUnavailable
from shared.events import Receipt
from shared.topics import outcome_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiokafka import AIOKafkaProducer

    from shared.settings import PlatformSettings

_STOP_S = 15.0
_APPEND_S = 30.0
"""Longer than the producer itself tries: a bound for what it does not bound, such as waiting for metadata."""
_BATCH_BYTES = 256 * 1024
"""One append: at most this many bytes of receipts in one record batch."""


class OutcomeWriter:
    """Appends outcomes, through a producer of its own. Calls for one request partition must not overlap.

    An idempotent producer whose record was refused or given up numbers all later ones wrongly, for good
    (`OutOfOrderSequenceNumber`): after a failed append it is replaced.
    """

    def __init__(self, settings: PlatformSettings) -> None:
        self._settings = settings
        self._topic = settings.topics.name(topics.OUTCOMES)
        self._source = settings.instance
        self._partitioner = DefaultPartitioner()
        self._producer: AIOKafkaProducer
        self._replacing = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._producer = await self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(_stop(self._producer), *self._stopping)

    async def _start(self) -> AIOKafkaProducer:
        return await kafka.start(lambda: kafka.producer(self._settings), "outcomes")

    async def _replace(self, failed: AIOKafkaProducer) -> None:
        async with self._replacing:
            if self._producer is failed:
                stopping = asyncio.create_task(_stop(failed))
                self._stopping.add(stopping)
                stopping.add_done_callback(self._stopping.discard)
                self._producer = await self._start()

    async def append(self, request_topic: str, request_partition: int, receipts: Sequence[Receipt]) -> None:
        """Append a contiguous run of outcomes and return when all of it is acknowledged.

        Raises:
            LogUnavailable: not acknowledged; some of it may be in the log.
        """
        key = outcome_key(request_topic, request_partition)
        producer = self._producer
        try:
            async with asyncio.timeout(_APPEND_S):
                await self._append(producer, key, receipts)
        except (KafkaError, TimeoutError) as err:
            await self._replace(producer)
            raise LogUnavailable(f"Kafka did not acknowledge outcomes of {key.decode()}: {err!r}") from err

    async def _append(self, producer: AIOKafkaProducer, key: bytes, receipts: Sequence[Receipt]) -> None:
        partition = await self._partition_of(producer, key)
        builder = producer.create_batch()
        for receipt in receipts:
            record = {
                "key": key,
                "value": encode_event(receipt),
                "timestamp": None,
                "headers": cloud_event_headers(
                    event_type=Receipt.__name__, source=self._source, event_id=receipt.request_id
                ),
            }
            if builder.size() > _BATCH_BYTES or not builder.append(**record):
                await self._send(producer, builder, partition)
                builder = producer.create_batch()
                builder.append(**record)
        await self._send(producer, builder, partition)

    async def _send(self, producer: AIOKafkaProducer, builder: object, partition: int) -> None:
        await (await producer.send_batch(builder, self._topic, partition=partition))

    async def _partition_of(self, producer: AIOKafkaProducer, key: bytes) -> int:
        partitions = sorted(await producer.partitions_for(self._topic))
        partition: int = self._partitioner(key, partitions, partitions)
        return partition


async def _stop(producer: AIOKafkaProducer) -> None:
    """Stop a producer, which first tries to send what it still holds; not for ever."""
    try:
        async with asyncio.timeout(_STOP_S):
            await producer.stop()
    except (KafkaError, TimeoutError) as err:
        logs.get().warning("a producer did not stop cleanly", error=repr(err))


@dataclass
class Watermarks:
    """The reader's rule. `highest` is all its state: snapshot it together with the offsets read up to."""

    highest: dict[tuple[str, int], int] = field(default_factory=dict)

    def accept(self, receipt: Receipt) -> bool:
        """Whether this outcome counts: the first for its request. Advances the watermark if so."""
        at = (receipt.request.topic, receipt.request.partition)
        if receipt.request.offset <= self.highest.get(at, -1):
            return False
        self.highest[at] = receipt.request.offset
        return True


def read_outcome(
    key: bytes | None, value: bytes | None, request_ends: Mapping[tuple[str, int], int] | None = None
) -> Receipt:
    """A record of `outcomes` as a receipt.

    `request_ends` are the end offsets of request partitions: an outcome of a request that is not there is forged or
    damaged, and must not raise a watermark.

    Raises:
        InvalidInput: not a receipt, filed under another key, or of a request beyond the partition's end.
    """
    receipt = decode_event(Receipt, value)
    at = (receipt.request.topic, receipt.request.partition)
    if key != outcome_key(*at):
        raise InvalidInput(f"an outcome of {at[0]}/{at[1]} is filed under {key and key[:200]!r}")
    if request_ends is not None and is_forged(receipt, request_ends):
        raise InvalidInput(f"an outcome of {at[0]}/{at[1]} offset {receipt.request.offset}, where no request is")
    return receipt


def is_forged(receipt: Receipt, request_ends: Mapping[tuple[str, int], int]) -> bool:
    """Whether the receipt is of a request that is not below the end of its partition, or of no partition at all."""
    at = (receipt.request.topic, receipt.request.partition)
    return not 0 <= receipt.request.offset < request_ends.get(at, 0)
