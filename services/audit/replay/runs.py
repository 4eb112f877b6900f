"""Batches at workers: sent to `replays`, so many at a time and so fast, their answers read from `replay-results`.

How much may be under way is bounded, so workers are given work as they do it. Answers are read from where the topic
ended before the first batch was sent.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner
from msgspec.structs import replace

from services.audit.replay.outstanding import ATTEMPTS, Outstanding
from shared import kafka, logs, topics
from shared.codec import cloud_event_headers, decode_event, encode_event
from shared.errors import InvalidInput, LogUnavailable, Unavailable
from shared.replay_events import ReplayRan, ReplayRequested

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    from services.audit.replay.outstanding import Sent
    from shared.settings import PlatformSettings

K = TypeVar("K")
_WINDOW: Final = 64
_WINDOW_BYTES: Final = 16 * 1024**2
_POLL_MS: Final = 250
_FIRST_ANSWER_S: Final = 60.0
_PARTITIONER: Final = DefaultPartitioner()


class NoWorker(Unavailable):
    """No worker answers replays."""

    code = "no_worker"


def _told(sending: asyncio.Future[object]) -> None:
    """Say that a batch was not taken; it is sent again when no answer comes."""
    if not sending.cancelled() and (err := sending.exception()) is not None:
        logs.get().warning("Kafka did not take a batch", error=repr(err))


class Runs:
    """Build it with `connected`."""

    def __init__(
        self,
        settings: PlatformSettings,
        producer: AIOKafkaProducer,
        consumer: AIOKafkaConsumer,
        rows_per_s: float | None,
    ) -> None:
        self._topic = settings.topics.name(topics.REPLAYS)
        self._source = settings.instance
        self._producer = producer
        self._consumer = consumer
        self._rows_per_s = rows_per_s
        self._begun_s = time.monotonic()
        self._rows = 0
        self._heard = False

    async def of(
        self, replay_id: str, batches: AsyncIterator[tuple[K, ReplayRequested]]
    ) -> AsyncIterator[tuple[K, ReplayRan | None]]:
        """Each batch's key with its answer, in whatever order; None for one that no worker answered in three attempts.

        Raises:
            NoWorker: nothing was ever answered.
            LogUnavailable: Kafka took nothing, or gave nothing.
        """
        outstanding = Outstanding[K](_WINDOW, _WINDOW_BYTES)
        there_is_more = True
        self._begun_s = time.monotonic()
        while there_is_more or len(outstanding):
            while there_is_more and outstanding.has_room and not self._is_early():
                following = await anext(batches, None)
                if following is None:
                    there_is_more = False
                    break
                await self._send(*following, outstanding)
            for ran in await self._answers(replay_id, _POLL_MS if len(outstanding) else 10):
                self._heard = True
                if (sent := outstanding.answered(ran.batch_id, time.monotonic())) is not None:
                    yield sent.key, ran
            for lost in list(outstanding.lost(time.monotonic())):
                if not await self._try_again(lost, outstanding):
                    yield lost.key, None

    def _is_early(self) -> bool:
        """Whether more would be faster than asked for."""
        if self._rows_per_s is None:
            return False
        return self._rows > (time.monotonic() - self._begun_s) * self._rows_per_s

    async def _send(self, key: K, asked: ReplayRequested, outstanding: Outstanding[K]) -> None:
        record_key = asked.batch_id.encode()
        headers = cloud_event_headers(event_type=ReplayRequested.__name__, source=self._source)
        try:
            partitions = sorted(await self._producer.partitions_for(self._topic))
            partition = _PARTITIONER(record_key, partitions, partitions)
            sending = await self._producer.send(
                self._topic, encode_event(asked), key=record_key, partition=partition, headers=headers
            )
            sending.add_done_callback(_told)
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not take a batch to replay: {err!r}") from err
        self._rows += len(asked.members)
        outstanding.sent(key, asked, partition, time.monotonic())

    async def _try_again(self, lost: Sent[K], outstanding: Outstanding[K]) -> bool:
        if not self._heard and time.monotonic() - self._begun_s > _FIRST_ANSWER_S:
            raise NoWorker(f"no worker answered within {_FIRST_ANSWER_S:g} s: is one running?")
        if lost.asked.attempt >= ATTEMPTS:
            outstanding.give_up(lost)
            return False
        logs.get().info("asking again for a batch", batch=lost.asked.batch_id, attempt=lost.asked.attempt + 1)
        await self._send(lost.key, replace(lost.asked, attempt=lost.asked.attempt + 1), outstanding)
        return True

    async def _answers(self, replay_id: str, wait_ms: int) -> list[ReplayRan]:
        try:
            fetched = await self._consumer.getmany(timeout_ms=wait_ms)
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not give the answers: {err!r}") from err
        found = []
        for record in (record for some in fetched.values() for record in some):
            try:
                ran = decode_event(ReplayRan, record.value)
            except InvalidInput as err:
                logs.get().warning("not an answer of a replay", offset=record.offset, error=err.message)
                continue
            if ran.replay_id == replay_id:
                found.append(ran)
        await asyncio.sleep(0)
        return found


@asynccontextmanager
async def connected(settings: PlatformSettings, rows_per_s: float | None = None) -> AsyncIterator[Runs]:
    """The way to the workers, with the topics there."""
    await kafka.ensure_topics(settings)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(
            kafka.started(lambda: kafka.producer(settings, max_batch_size=1_000_000, linger_ms=2), "replays")
        )
        consumer = await stack.enter_async_context(
            kafka.started(lambda: kafka.consumer(settings, fetch_max_wait_ms=_POLL_MS), "replay results")
        )
        results = settings.topics.name(topics.REPLAY_RESULTS)
        partitions = [TopicPartition(results, number) for number in sorted(await producer.partitions_for(results))]
        consumer.assign(partitions)
        for partition, end in (await consumer.end_offsets(partitions)).items():
            consumer.seek(partition, end)
        yield Runs(settings, producer, consumer, rows_per_s)
