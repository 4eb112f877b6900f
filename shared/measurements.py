"""Questions and answers on `measurements`: how fast is it on your class of machine?

An optimizer asks one live worker by its name and incarnation; that worker answers under the question's id. Both read
from where the log ended when they began: a question is for who lives, an answer for who waits. So nothing is claimed
and nothing committed. A question that nobody answers ends with the asker's patience.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from shared import kafka, logs, topics
from shared.background import beside
from shared.codec import cloud_event_headers, decode_event, encode_event
from shared.errors import InvalidInput
from shared.events import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    from shared.measurement_events import MeasurementRequested, MeasurementTaken
    from shared.settings import PlatformSettings

E = TypeVar("E", bound=Event)
_RETRY_S = 1.0


@asynccontextmanager
async def followed(settings: PlatformSettings, event_type: type[E], take: Callable[[E], None]) -> AsyncIterator[None]:
    """Give every event of a type that is written from now on to `take`, for as long as this is entered."""
    async with kafka.started(lambda: kafka.consumer(settings), topics.MEASUREMENTS.name) as consumer:
        partition = TopicPartition(settings.topics.name(topics.MEASUREMENTS), 0)
        consumer.assign([partition])
        await consumer.seek_to_end(partition)
        async with beside(_read(consumer, event_type, take)):
            yield


async def _read(consumer: AIOKafkaConsumer, event_type: type[E], take: Callable[[E], None]) -> None:
    name = event_type.__name__.encode()
    while True:
        try:
            fetched = await consumer.getmany(timeout_ms=1000)
        except KafkaError as err:
            logs.get().warning("waiting for kafka", what=topics.MEASUREMENTS.name, error=repr(err))
            await asyncio.sleep(_RETRY_S)
            continue
        for record in (record for records in fetched.values() for record in records):
            if ("ce_type", name) not in record.headers:
                continue
            try:
                event = decode_event(event_type, record.value)
            except InvalidInput as err:
                logs.get().warning("ignored a record", topic=record.topic, offset=record.offset, error=err.message)
            else:
                take(event)


async def publish(
    settings: PlatformSettings, producer: AIOKafkaProducer, model: str, event: MeasurementRequested | MeasurementTaken
) -> None:
    """Append a question or an answer about a model.

    Raises:
        KafkaError: it was not taken; a question may be too large for a record.
    """
    headers = cloud_event_headers(event_type=type(event).__name__, source=settings.instance)
    topic = settings.topics.name(topics.MEASUREMENTS)
    await producer.send_and_wait(topic, encode_event(event), key=model.encode(), partition=0, headers=headers)
