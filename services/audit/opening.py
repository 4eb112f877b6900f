"""Where an archiver goes on: the last manifest of each partition, held against the log that Kafka has.

If Kafka's log ends before the archive does, or has another record where the archive's last one lay, the broker's data
was lost and this is another log under the same name: it gets another life, and the archive of the old one stays as it
is. A cluster with another id is another log anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from services.audit import archive_reader, layout, tables
from services.audit.chain import Chain
from services.audit.kafka_source import kafka_offsets, log_partitions, log_portions
from services.audit.layout import ROOT, Log, decode_manifest, places
from services.audit.segment import Segment
from services.audit.writer import Lane
from shared import logs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiokafka import AIOKafkaConsumer, TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient

    from services.audit.layout import Manifest
    from services.audit.store import ArchiveStore
    from services.audit.writer import Writer


class Standing(NamedTuple):
    """Where the archive of a topic stands, and what Kafka has of it."""

    log: Log
    """The archive's last life of it."""
    last: Mapping[TopicPartition, tuple[Manifest, str] | None]
    """The last segment of each partition that Kafka has."""
    begins: Mapping[TopicPartition, int]
    goes_on: bool
    """Whether what Kafka has goes on where the archive ends; it is another log otherwise."""


async def standing(
    store: ArchiveStore, admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, cluster_id: str | None, topic: str
) -> Standing:
    """Hold the archive's end against Kafka.

    Raises:
        LogUnavailable, StoreUnavailable: Kafka or the store did not answer.
        InvalidInput, DigestMismatch, ArtifactNotFound: the archive is damaged where it ends.
    """
    partitions = await log_partitions(admin, topic)
    cluster = layout.cluster_name(cluster_id)
    log = Log(cluster, topic, await _last_life(store, cluster, topic))
    last = {at: await _last_manifest(store, log, at.partition) for at in partitions}
    ends = await kafka_offsets(consumer, partitions, "end")
    begins = await kafka_offsets(consumer, partitions, "beginning")
    return Standing(log, last, begins, await _same_log(store, consumer, last, begins, ends))


async def open_lanes(
    store: ArchiveStore,
    writer: Writer,
    admin: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    cluster_id: str | None,
    topic: str,
) -> dict[TopicPartition, Lane]:
    """A lane for each partition of a topic.

    Raises:
        The errors of `standing`.
    """
    log, last, begins, goes_on = await standing(store, admin, consumer, cluster_id, topic)
    if not goes_on:
        logs.get().error("the log in Kafka is not the archived one; another life of it begins", log=str(log))
        log, last = structs.replace(log, life=log.life + 1), dict.fromkeys(last)
    lanes = {}
    for at, found in last.items():
        lanes[at] = _lane(log, at, found, begins[at])
        if found and not await store.exists(log.checkpoint(at.partition, found[0].next)):
            await writer.sign(found[0])
    return lanes


def _lane(log: Log, at: TopicPartition, found: tuple[Manifest, str] | None, begin: int) -> Lane:
    if found is None:
        return Lane(log, at.partition, Segment(begin, begin))
    last, digest = found
    if begin > last.next:
        logs.get().error("records expired before they were archived", log=str(log), first=last.next, last=begin - 1)
    head, first = bytes.fromhex(last.head), max(begin, last.next)
    return Lane(log, at.partition, Segment(first, first), Chain(head), head, digest, archive_reader.marks_of(last))


async def _last_life(store: ArchiveStore, cluster: str, topic: str) -> int:
    names = await store.folders(f"{ROOT}/{cluster}/{topic}/")
    return max((int(name) for name in names if name.isdecimal()), default=0)


async def _last_manifest(store: ArchiveStore, log: Log, partition: int) -> tuple[Manifest, str] | None:
    """The first revision of the last segment's manifest, and its digest. Raw records are the same in all of them."""
    found = [place for place in places(await store.keys(log.manifests(partition))) if place.revision == 0]
    if not found:
        return None
    content = await store.get(log.manifest(partition, found[-1].first))
    return decode_manifest(content), layout.sha256(content)


async def _same_log(
    store: ArchiveStore,
    consumer: AIOKafkaConsumer,
    last: Mapping[TopicPartition, tuple[Manifest, str] | None],
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
) -> bool:
    """Whether what Kafka has goes on where the archive ends."""
    for at, found in last.items():
        if found is None:
            continue
        manifest = found[0]
        if ends[at] < manifest.next:
            return False
        offset = manifest.next - 1
        if offset < begins[at]:
            continue
        [file] = [file for file in manifest.files if file.kind == "records"]
        rows = list(tables.decode(tables.RECORDS, await store.get(file.key, expected_sha256=file.sha256)))
        consumer.assign([at])
        consumer.seek(at, offset)
        there = [record async for some in log_portions(consumer, at, offset, offset + 1) for record in some]
        archived = [(row["offset"], row["key"], row["value"]) for row in rows[-1:]]
        if [(record.offset, record.key, record.value) for record in there] != archived:
            return False
    return True
