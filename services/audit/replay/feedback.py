"""Ground truth for requests, from the log: the last word on each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient

from services.audit.kafka_source import kafka_offsets, log_partitions, log_portions
from shared import kafka, topics
from shared.codec import decode_event
from shared.errors import InvalidInput
from shared.events import FeedbackGiven

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from aiokafka import ConsumerRecord

    from shared.settings import PlatformSettings

_TYPE = FeedbackGiven.__name__.encode()


async def feedback(settings: PlatformSettings, model: str, ids: AbstractSet[str]) -> dict[str, FeedbackGiven]:
    """What is known of requests, by id.

    Raises:
        LogUnavailable: Kafka did not give it.
    """
    topic = settings.topics.name(topics.FEEDBACK)
    given: dict[str, FeedbackGiven] = {}
    async with (
        kafka.started(lambda: AIOKafkaAdminClient(**kafka.client_options(settings)), "feedback") as admin,
        kafka.started(lambda: kafka.consumer(settings), "feedback") as consumer,
    ):
        partitions = await log_partitions(admin, topic)
        begins = await kafka_offsets(consumer, partitions, "beginning")
        ends = await kafka_offsets(consumer, partitions, "end")
        consumer.assign(partitions)
        consumer.pause(*partitions)
        for at in partitions:
            consumer.seek(at, begins[at])
            async for portion in log_portions(consumer, at, begins[at], ends[at]):
                for event in map(_read, portion):
                    if event is not None and event.model == model and event.request_id in ids:
                        given[event.request_id] = event
    return given


def _read(record: ConsumerRecord) -> FeedbackGiven | None:
    if dict(record.headers).get("ce_type") != _TYPE:
        return None
    try:
        return decode_event(FeedbackGiven, record.value)
    except InvalidInput:
        return None
