"""`aiaas topics` and `aiaas dead-letters`: the log itself, for people.

Reading needs Kafka, not the gateway: the running local stack's, or that of `AIAAS_KAFKA_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from rich.markup import escape

from services.cli.errors import NotTried
from services.cli.printing import Json, as_json, console, table
from services.cli.where import platform_settings
from shared import kafka
from shared import topics as the_map
from shared.asyncapi import document

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord

    from shared.settings import PlatformSettings

dead_letters = typer.Typer(no_args_is_help=True, help="Records that failed before they ran, with their cause.")

_TIMEOUT_S = 15.0
_SHOWN_BYTES = 200


AsyncApi = Annotated[bool, typer.Option("--asyncapi", help="Print the AsyncAPI document, with every record's schema.")]


def topics(*, json: Json = False, asyncapi: AsyncApi = False) -> None:
    """The map: which topic carries what, by which key, who writes it and who reads it."""
    names = platform_settings().topics
    rows = {
        names.requests("{model}"): the_map.REQUESTS,
        names.requests("{model}", high=True): the_map.REQUESTS,
        **{names.name(topic): topic for topic in the_map.FIXED},
    }
    if asyncapi:
        as_json(document(names))
        return
    if json:
        as_json([{"topic": name, **_row(topic)} for name, topic in rows.items()])
        return
    shown = table("topic", "key", "value", "written by", "read by")
    for name, topic in rows.items():
        shown.add_row(name, topic.key, topic.value, topic.written_by, topic.read_by)
    console().print(shown)


@dead_letters.command("list")
def list_dead_letters(
    *, limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 50, json: Json = False
) -> None:
    """The newest dead letters, oldest first."""
    letters = asyncio.run(_read_newest(platform_settings(), limit))
    if json:
        as_json(letters)
        return
    shown = table("at", "from", "code", "error")
    for letter in letters:
        shown.add_row(
            letter["at"],
            "{topic}/{partition}@{offset}".format(**letter),
            letter["code"] or "",
            escape(letter["error"] or ""),
        )
    console().print(shown if letters else "no dead letters")


def _row(topic: the_map.Topic) -> dict[str, Any]:
    return {
        "key": topic.key,
        "value": topic.value,
        "written_by": topic.written_by,
        "read_by": topic.read_by,
        "events": [event.__name__ for event in topic.events],
    }


async def _read_newest(settings: PlatformSettings, limit: int) -> list[dict[str, Any]]:
    """The last records of the topic, at most `limit` a partition, then of all.

    Raises:
        NotTried: Kafka does not answer, or has no such topic.
    """
    topic = settings.topics.name(the_map.DEAD_LETTERS)
    consumer = kafka.consumer(settings)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await consumer.start()
            found = sorted(consumer.partitions_for_topic(topic) or await _partitions(consumer, topic))
            partitions = [TopicPartition(topic, number) for number in found]
            records = [record for each in partitions for record in await _tail(consumer, each, limit)]
    except (KafkaError, OSError, TimeoutError) as err:
        raise NotTried(
            f"Kafka at {settings.kafka_bootstrap_servers} does not answer ({err or type(err).__name__}): "
            "start the platform with `aiaas up`, or set AIAAS_KAFKA_BOOTSTRAP_SERVERS."
        ) from err
    finally:
        await consumer.stop()
    return [_letter(record) for record in sorted(records, key=lambda record: record.timestamp)[-limit:]]


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    if topic not in await consumer.topics():
        raise NotTried(f"Kafka has no topic {topic}: no service of the platform has run on it yet.")
    return consumer.partitions_for_topic(topic) or set()


async def _tail(consumer: AIOKafkaConsumer, partition: TopicPartition, limit: int) -> list[ConsumerRecord]:
    """The last `limit` records of a partition."""
    consumer.assign([partition])
    end = (await consumer.end_offsets([partition]))[partition]
    begin = (await consumer.beginning_offsets([partition]))[partition]
    consumer.seek(partition, max(begin, end - limit))
    records: list[ConsumerRecord] = []
    while await consumer.position(partition) < end:
        for batch in (await consumer.getmany(timeout_ms=1000)).values():
            records += batch
    return records


def _letter(record: ConsumerRecord) -> dict[str, Any]:
    """A dead letter as its headers tell it (see `shared.dead_letters`)."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    return {
        "at": f"{datetime.fromtimestamp(record.timestamp / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "topic": headers.get("x-original-topic"),
        "partition": headers.get("x-original-partition"),
        "offset": headers.get("x-original-offset"),
        "code": headers.get("x-error-code"),
        "error": headers.get("x-error"),
        "attempt": headers.get("x-attempt"),
        "content_type": headers.get("content-type"),
        "value_bytes": len(record.value or b""),
        "value_begins": (record.value or b"")[:_SHOWN_BYTES].decode("utf-8", "replace"),
    }
