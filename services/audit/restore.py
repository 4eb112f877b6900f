"""Putting the registry's log back into Kafka from the archive, when the broker's data is lost.

Every record gets the offset and the time that it had: receipts point to offsets, and `--as-of` goes by times. The topic
stamps records with the time of writing in normal life, so for the restore it takes the given times, and is set back
afterwards. Offsets that were no records are filled with records that nobody reads as events. Only an empty log is
restored into. The services may run meanwhile or start later: they read the log from its beginning.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from services.audit import archive_reader
from services.audit.kafka_source import kafka_offsets
from services.audit.store import ArchiveStore
from shared import kafka, topics
from shared.codec import cloud_event_headers, unpack
from shared.errors import Conflict, LogUnavailable, UnknownModel

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

    from services.audit.tables import Row
    from shared.settings import PlatformSettings

_THEIR_TIMES: Final = {"message.timestamp.type": "CreateTime"}
_TIMESTAMP_OF_PRODUCER: Final = 0
_SETTLED_S: Final = 30.0


async def restore(settings: PlatformSettings) -> int:
    """Restore the registry's log; returns how many records it has.

    Raises:
        UnknownModel: the archive has no such log.
        Conflict: there is something in the log already.
        LogUnavailable: Kafka did not take it all: delete the topic, and restore again.
        StoreUnavailable, DigestMismatch, InvalidInput: the archive could not be read.
    """
    rows = await _archived(settings)
    await kafka.ensure_topics(settings)
    topic = settings.topics.name(topics.MODELS)
    async with (
        kafka.started(lambda: kafka.consumer(settings), "end of the registry log") as consumer,
        kafka.started(lambda: AIOKafkaAdminClient(**kafka.client_options(settings)), "settings of topics") as admin,
        kafka.started(lambda: kafka.producer(settings), "restore") as producer,
    ):
        at = TopicPartition(topic, 0)
        if (await kafka_offsets(consumer, [at], "end"))[at]:
            raise Conflict(f"there is something in {topic}: only an empty log is restored into")
        usual = topics.MODELS.kafka_config
        try:
            await _configure(admin, topic, usual | _THEIR_TIMES)
            await _write(producer, topic, rows)
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not take the registry's log: {err!r}") from err
        finally:
            await _configure(admin, topic, usual)
    return len(rows)


async def _archived(settings: PlatformSettings) -> list[Row]:
    """The raw records of the log that was archived last. It is small: state changes only."""
    store = ArchiveStore(settings.artifact_store_url)
    log = await archive_reader.latest(store, await archive_reader.logs_of(store, settings.topics.name(topics.MODELS)))
    if log is None:
        raise UnknownModel("the archive has no registry's log")
    return [
        row
        async for manifest in archive_reader.manifests(store, log, 0)
        for file in manifest.files
        for row in await archive_reader.rows(store, file)
    ]


async def _write(producer: AIOKafkaProducer, topic: str, rows: list[Row]) -> None:
    position = 0
    for row in rows:
        while position < row["offset"]:
            filler = cloud_event_headers(event_type="Filler", source="restore")
            await _append(producer, topic, position, row["timestamp_ms"], key=b"", value=b"", headers=filler)
            position += 1
        headers = [(name, value) for name, value in unpack(row["headers"])]
        await _append(
            producer, topic, position, row["timestamp_ms"], key=row["key"], value=row["value"], headers=headers
        )
        position += 1


async def _append(producer: AIOKafkaProducer, topic: str, offset: int, timestamp_ms: int, **record: Any) -> None:
    if record["key"] is None and record["value"] is None:
        record["value"] = b""  # aiokafka sends none that has neither; it was no event, and is none
    written = await producer.send_and_wait(topic, partition=0, timestamp_ms=timestamp_ms, **record)
    if (written.offset, written.timestamp_type) != (offset, _TIMESTAMP_OF_PRODUCER):
        raise LogUnavailable(
            f"record {offset} of {topic} got offset {written.offset} (or another time): somebody else writes there"
        )


async def _configure(admin: AIOKafkaAdminClient, topic: str, config: dict[str, str]) -> None:
    """Set a topic's configuration, and return when the broker has it."""
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=config)])
    async with asyncio.timeout(_SETTLED_S):
        while True:
            [described] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            there = {entry[0]: entry[1] for resource in described.resources for entry in resource[4]}
            if all(there.get(name) == value for name, value in config.items()):
                return
            await asyncio.sleep(0.1)
