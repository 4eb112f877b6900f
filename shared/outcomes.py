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
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from shared import topics
from shared.codec import cloud_event_headers, decode_event, rfc3339
from shared.errors import InvalidInput, LogUnavailable
from shared.outcome_events import Receipt
from shared.steady_producer import SteadyProducer
from shared.topics import outcome_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiokafka import AIOKafkaProducer

    from shared.settings import PlatformSettings

_APPEND_S = 30.0
"""Longer than the producer itself tries: a bound for what it does not bound, such as waiting for metadata."""
_BATCH_BYTES = 256 * 1024
"""One append: at most this many bytes of receipts in one record batch."""


class OutcomeWriter:
    """Appends outcomes, through a producer of its own. Calls for one request partition must not overlap."""

    def __init__(self, settings: PlatformSettings) -> None:
        self._topic = settings.topics.name(topics.OUTCOMES)
        self._about = cloud_event_headers(event_type=Receipt.__name__, source=settings.instance, event_id="")
        self._partitioner = DefaultPartitioner()
        self._partitions: dict[bytes, int] = {}
        """Of keys; topics never get more partitions."""
        self._steady = SteadyProducer(settings, "outcomes", batch_bytes=_BATCH_BYTES)

    async def __aenter__(self) -> Self:
        await self._steady.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._steady.__aexit__(*exc)

    async def append(self, request_topic: str, request_partition: int, receipts: Sequence[tuple[str, bytes]]) -> None:
        """Append a contiguous run of outcomes and return when all of it is acknowledged.

        `receipts` are request ids, and the receipts as `encode_event` gives them.

        Raises:
            LogUnavailable: not acknowledged; some of it may be in the log.
        """
        key = outcome_key(request_topic, request_partition)
        producer = self._steady.producer
        try:
            async with asyncio.timeout(_APPEND_S):
                await self._append(producer, key, receipts)
        except (KafkaError, TimeoutError) as err:
            await self._steady.replace(producer)
            raise LogUnavailable(f"Kafka did not acknowledge outcomes of {key.decode()}: {err!r}") from err

    async def _append(self, producer: AIOKafkaProducer, key: bytes, receipts: Sequence[tuple[str, bytes]]) -> None:
        partition = await self._partition_of(producer, key)
        builder = producer.create_batch()
        stamped = ("ce_time", rfc3339(time.time_ns()).encode())
        about = [stamped if name == "ce_time" else (name, value) for name, value in self._about if name != "ce_id"]
        for request_id, receipt in receipts:
            headers = [("ce_id", request_id.encode()), *about]
            if builder.size() > _BATCH_BYTES or not builder.append(
                timestamp=None, key=key, value=receipt, headers=headers
            ):
                await self._send(producer, builder, partition)
                builder = producer.create_batch()
                builder.append(timestamp=None, key=key, value=receipt, headers=headers)
        await self._send(producer, builder, partition)

    async def _send(self, producer: AIOKafkaProducer, builder: object, partition: int) -> None:
        await (await producer.send_batch(builder, self._topic, partition=partition))

    async def _partition_of(self, producer: AIOKafkaProducer, key: bytes) -> int:
        partition = self._partitions.get(key)
        if partition is None:
            partitions = sorted(await producer.partitions_for(self._topic))
            partition = self._partitions[key] = self._partitioner(key, partitions, partitions)
        return partition


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
