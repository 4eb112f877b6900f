"""FastStream as the platform uses it: its codec, when a record counts as done, and what becomes of poison.

Only topics that can stand it go through here (`metrics`, later `feedback`, `replays` and alerts): the request path, the
registry and the outcome log read with aiokafka and explicit offsets.

**Acknowledgement: when saved.** None of FastStream's policies is ours: its default acknowledges first, its `msg.ack()`
commits every position consumed, whether handled or not. So it is left to do nothing (`MANUAL`); `Done` notes how far
records have been handled, and whoever keeps their effect commits that once it is stored. After a crash records are
handled again, and handlers must ignore repeats.

**Poison.** A record that can't be decoded, or whose handler raises, goes to the dead letters and is done: neither
raising nor not acknowledging would hold it back, only block or lose what follows. While Kafka does not take the dead
letter, the subscriber waits.

**Decoding.** `ce_type` is looked up among the events of the topic; the handler gets the event itself.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faststream import AckPolicy, BaseMiddleware
from faststream.kafka import KafkaBroker
from faststream.kafka.message import FAKE_CONSUMER, KafkaMessage
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from shared import kafka, logs, quick_fetches, tolerant_records
from shared.codec import decode_event
from shared.errors import AiaasError, InvalidInput, LogUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from aiokafka import ConsumerRecord
    from faststream import ContextRepo
    from faststream.kafka.subscriber.usecase import DefaultSubscriber
    from faststream.message import StreamMessage

    from shared.dead_letters import DeadLetters
    from shared.events import Event
    from shared.settings import PlatformSettings
    from shared.topics import Topic

_RETRY_S = 1.0


class Done:
    """How far a subscriber has handled its topic: the next offset by partition."""

    def __init__(self) -> None:
        self._offsets: dict[TopicPartition, int] = {}

    def note(self, record: ConsumerRecord) -> None:
        """This record is handled, or given up."""
        self._offsets[TopicPartition(record.topic, record.partition)] = record.offset + 1

    def offsets(self) -> dict[TopicPartition, int]:
        """What to commit once the effect of all that was handled until now is stored."""
        return dict(self._offsets)


def build(settings: PlatformSettings) -> KafkaBroker:
    """A broker that only consumes; what services publish, they publish with their own idempotent producer."""
    tolerant_records.install()  # FastStream's consumers are aiokafka's
    quick_fetches.install()
    options = kafka.client_options(settings)
    return KafkaBroker(
        options["bootstrap_servers"],
        client_id=options["client_id"],
        security=_security(options),
        consumer_only=True,
        allow_auto_create_topics=False,
        apply_types=False,  # the decoder has made an event of it, and checked it
        logger=logging.getLogger("faststream"),
        log_level=logging.DEBUG,  # of a line a record; what matters is logged here
    )


def subscriber(broker: KafkaBroker, settings: PlatformSettings, topic: Topic, group: str) -> DefaultSubscriber:
    """A subscriber to the events of a topic, one record at a time, from the earliest that `group` has not done."""
    events = {event.__name__: event for event in topic.events}
    subscription: DefaultSubscriber = broker.subscriber(
        settings.topics.name(topic),
        group_id=settings.topic_prefix + group,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        ack_policy=AckPolicy.MANUAL,
        no_reply=True,
        parser=_parse,
        decoder=partial(_decode, events),
        title=topic.name,
        description=topic.value,
    )
    return subscription


@asynccontextmanager
async def running(broker: KafkaBroker, dead_letters: DeadLetters, done: Done) -> AsyncIterator[None]:
    """Consume, from when Kafka is reached, until left; `done` notes what is handled."""
    broker.add_middleware(partial(_Handling, done, dead_letters))
    try:
        while True:
            try:
                with kafka.refusals_in_words():
                    await kafka.begun(broker.start())
                break
            except (KafkaError, OSError) as err:
                logs.get().warning("waiting for kafka", what="subscribers", error=repr(err))
                await broker.stop()
                await asyncio.sleep(_RETRY_S)
        yield
    finally:
        await broker.stop()


async def commit(broker: KafkaBroker, offsets: Mapping[TopicPartition, int]) -> None:
    """Acknowledge everything below these offsets (see `Done`); if Kafka does not take it, it is handled once more."""
    for subscription in broker.subscribers:
        consumer = cast("DefaultSubscriber", subscription).consumer
        mine = {at: offset for at, offset in offsets.items() if consumer and at in consumer.assignment()}
        try:
            if consumer and mine:
                await consumer.commit(mine)
        except KafkaError as err:
            logs.get().warning("offsets not committed", group=consumer and str(mine), error=repr(err))


class _Handling(BaseMiddleware):
    """Around everything that happens to one record, decoding included."""

    def __init__(self, done: Done, dead_letters: DeadLetters, msg: Any, /, *, context: ContextRepo) -> None:
        super().__init__(msg, context=context)
        self._done = done
        self._dead_letters = dead_letters

    async def after_processed(
        self,
        exc_type: type[BaseException] | None = None,  # noqa: ARG002 - FastStream's signature
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,  # noqa: ARG002 - as above
    ) -> bool:
        if isinstance(exc_val, Exception):
            await self._give_up(exc_val)
        elif exc_val is not None:
            return False
        self._done.note(self.msg)
        return True

    async def _give_up(self, error: Exception) -> None:
        record: ConsumerRecord = self.msg
        known = error if isinstance(error, AiaasError) else AiaasError(repr(error))
        logs.get().warning(
            "record given up", topic=record.topic, offset=record.offset, code=known.code, error=known.message
        )
        while True:
            try:
                await self._dead_letters.publish(record, known)
            except LogUnavailable as err:
                logs.get().warning("waiting for kafka", what="dead letters", error=err.message)
                await asyncio.sleep(_RETRY_S)
            else:
                return


async def _parse(record: ConsumerRecord) -> KafkaMessage:
    """FastStream's own parser raises on headers that are null or no text."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    return KafkaMessage(
        raw_message=record,
        body=record.value or b"",
        headers=headers,
        correlation_id=headers.get("ce_id"),
        message_id=f"{record.partition}-{record.offset}",
        consumer=FAKE_CONSUMER,  # nobody acknowledges by message
    )


async def _decode(events: Mapping[str, type[Event]], message: StreamMessage[ConsumerRecord]) -> Event:
    name = message.headers.get("ce_type", "")
    if name not in events:
        raise InvalidInput(f"ce_type {name[:40]!r} is not an event of this topic")
    return decode_event(events[name], message.body)


def _security(options: Mapping[str, Any]) -> BaseSecurity | None:
    """The security of `kafka.client_options` in FastStream's words."""
    context = options.get("ssl_context")
    mechanism = options.get("sasl_mechanism")
    if mechanism is None:
        return BaseSecurity(ssl_context=context, use_ssl=True) if context else None
    kind = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}[mechanism]
    return kind(
        options["sasl_plain_username"],
        options["sasl_plain_password"],
        ssl_context=context,
        use_ssl=context is not None,
    )
