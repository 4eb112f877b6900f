"""Following a compacted topic of one partition: the last event of every key, and then each that comes.

Read from the beginning at every start, which compaction keeps short; nothing is committed. What is no event is logged
and passed over. Who follows decides what an event means to it: see `shared.heartbeats` and `shared.statistics`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from shared import kafka, logs
from shared.background import beside
from shared.codec import decode_event
from shared.errors import InvalidInput
from shared.events import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiokafka import AIOKafkaConsumer, ConsumerRecord

    from shared.settings import PlatformSettings
    from shared.topics import Topic

E = TypeVar("E", bound=Event)
_RETRY_S = 1.0


@asynccontextmanager
async def followed(
    settings: PlatformSettings, topic: Topic, event_type: type[E], take: Callable[[E, ConsumerRecord], None]
) -> AsyncIterator[None]:
    """Give every event of `topic` to `take`, with its record, for as long as this is entered."""
    async with kafka.started(lambda: kafka.consumer(settings), topic.name) as consumer:
        partition = TopicPartition(settings.topics.name(topic), 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        async with beside(_read(consumer, topic.name, event_type, take)):
            yield


async def _read(
    consumer: AIOKafkaConsumer, what: str, event_type: type[E], take: Callable[[E, ConsumerRecord], None]
) -> None:
    while True:
        try:
            fetched = await consumer.getmany(timeout_ms=1000)
        except KafkaError as err:
            logs.get().warning("waiting for kafka", what=what, error=repr(err))
            await asyncio.sleep(_RETRY_S)
            continue
        for record in (record for records in fetched.values() for record in records):
            try:
                event = decode_event(event_type, record.value)
            except InvalidInput as err:
                logs.get().warning("ignored a record", topic=record.topic, offset=record.offset, error=err.message)
            else:
                take(event, record)
