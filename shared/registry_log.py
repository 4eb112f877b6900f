"""Following the `models` log: the registry as this process knows it, and publishing with read-back.

One consumer, explicitly assigned to the log's one partition, reads it from the beginning at every start; nothing is
committed. Who needs a certain state waits for an offset (`reached`) or for the present end (`caught_up`); who
publishes gets the registry in which the event has been folded, and can see what became of it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from shared import kafka, logs, topics
from shared.background import beside
from shared.codec import cloud_event_headers, decode_event, encode_event
from shared.errors import InvalidInput, LogUnavailable
from shared.registry import Entry, Registry, fold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

    from shared.events import Event, ModelEvent
    from shared.settings import PlatformSettings

_MODEL_EVENTS = {event.__name__: event for event in topics.MODELS.events}
_PUBLISH_TIMEOUT_S = 10.0


class RegistryLog:
    """The registry, kept up to date. Build it with `follow`."""

    def __init__(
        self,
        settings: PlatformSettings,
        consumer: AIOKafkaConsumer,
        ends: AIOKafkaConsumer,
        producer: AIOKafkaProducer,
        heard: Callable[[Entry, Registry], None] | None = None,
    ) -> None:
        self._source = settings.instance
        self._partition = TopicPartition(settings.topics.name(topics.MODELS), 0)
        self._consumer = consumer
        self._ends = ends
        self._producer = producer
        self._heard = heard
        self._changed = asyncio.Condition()
        self.registry = Registry()

    async def run(self) -> None:
        """Fold records until cancelled. Kafka being away only makes the registry old."""
        while True:
            try:
                fetched = await self._consumer.getmany(timeout_ms=1000)
            except KafkaError as err:
                logs.get().warning("waiting for kafka", what="registry log", error=repr(err))
                await asyncio.sleep(1)
                continue
            registry = self.registry
            for record in fetched.get(self._partition, ()):
                read = entry(record)
                registry, before = fold(registry, read), registry
                if self._heard is not None and registry.models is not before.models:
                    self._heard(read, registry)
            if registry is not self.registry:
                async with self._changed:
                    self.registry = registry
                    self._changed.notify_all()

    async def reached(self, offset: int) -> Registry:
        """The registry once the log is folded up to and including `offset`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.registry.offset >= offset)
        return self.registry

    async def caught_up(self) -> Registry:
        """The registry with all that was in the log when this was called.

        Raises:
            LogUnavailable: Kafka did not tell where the log ends.
        """
        try:
            ends = await self._ends.end_offsets([self._partition])
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not tell the end of the registry's log: {err!r}") from err
        return await self.reached(ends[self._partition] - 1)

    async def changes(self) -> AsyncIterator[Registry]:
        """The registry now, and again after each change; what came in between is skipped."""
        seen: Registry | None = None
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.registry is not seen)  # noqa: B023 - awaited in place
            seen = self.registry
            yield seen

    async def publish(self, event: ModelEvent) -> Registry:
        """Append an event; returns the registry in which it has been folded.

        Raises:
            InvalidInput: the event breaks its own rules.
            LogUnavailable: not acknowledged, or not read back, in time. It may be in the log all the same.
        """
        headers = cloud_event_headers(event_type=type(event).__name__, source=self._source)
        value = encode_event(event)
        decode_event(type(event), value)  # what nobody would take must not get into a log that is kept for ever
        try:
            async with asyncio.timeout(_PUBLISH_TIMEOUT_S):
                written = await self._producer.send_and_wait(
                    self._partition.topic, value, key=event.model.encode(), partition=0, headers=headers
                )
                return await self.reached(written.offset)
        except (KafkaError, TimeoutError) as err:
            raise LogUnavailable(f"Kafka did not acknowledge {type(event).__name__}: {err!r}") from err


@asynccontextmanager
async def follow(
    settings: PlatformSettings,
    producer: AIOKafkaProducer,
    heard: Callable[[Entry, Registry], None] | None = None,
) -> AsyncIterator[RegistryLog]:
    """Follow the log; entered when all that was in it at the start has been folded.

    `heard` is told every record that changed something, with the registry after it.
    """
    async with (
        kafka.started(lambda: kafka.consumer(settings), "registry log") as consumer,
        # Asking for the end on the first one's connection would wait behind its long poll.
        kafka.started(lambda: kafka.consumer(settings), "end of the registry log") as ends,
    ):
        partition = TopicPartition(settings.topics.name(topics.MODELS), 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        log = RegistryLog(settings, consumer, ends, producer, heard)
        async with beside(log.run()):
            await log.caught_up()
            yield log


def entry(record: ConsumerRecord) -> Entry:
    """A record of the log, for the fold; what can't be read is ignored, with a log line."""
    return entry_of(record.offset, record.timestamp, record.headers, record.value)


def entry_of(offset: int, timestamp_ms: int, headers: Iterable[tuple[str, bytes | None]], value: bytes | None) -> Entry:
    """The same, of a record that is not, or no longer, in Kafka."""
    return Entry(offset, timestamp_ms, _event(offset, headers, value))


def _event(offset: int, headers: Iterable[tuple[str, bytes | None]], value: bytes | None) -> Event | None:
    named = next((content for key, content in headers if key == "ce_type"), None)
    name = (named or b"").decode("ascii", "replace")  # Kafka knows null headers
    event_type = _MODEL_EVENTS.get(name)
    if event_type is None:
        _ignored(offset, f"ce_type {name[:40]!r} is not an event of this topic")
        return None
    try:
        return decode_event(event_type, value)
    except InvalidInput as err:
        _ignored(offset, err.message)
        return None


def _ignored(offset: int, error: str) -> None:
    logs.get().warning("ignored a record", topic=topics.MODELS.name, offset=offset, error=error)
