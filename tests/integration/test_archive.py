"""The archive on real Kafka and Redis: exactly what was recorded, through kills, once."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from services.audit import archive_reader, archive_source, joined_source, kafka_source, signing
from services.audit.chain import Chain
from services.audit.commands import explained, restored
from services.audit.records import RecordedRequest
from services.audit.store import ArchiveStore
from services.audit.verify.run import verify
from services.worker.settings import WorkerSettings
from shared import kafka, topics
from shared.errors import Conflict
from shared.results import Result
from support.archive import archived_up_to, archiving, everything
from support.processes import service
from support.served import body, serving
from support.waiting import eventually
from support.worker_rig import rig, worker_running

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("apache_kafka")]


@pytest.fixture
def settings(backbone):
    return backbone.settings(WorkerSettings, threads=1)


@pytest.fixture
def audit_settings(settings, backbone):
    return archiving(backbone, settings, segment_rows=40)


async def test_the_archive_is_what_was_recorded_through_kills(settings, audit_settings, backbone):
    async with serving(settings, backbone.model()) as served:
        await served.ask(40)
        for _ in range(2):
            with service("audit", audit_settings, None):  # killed at the end
                await archived_up_to(audit_settings, await served.ends())
                await served.ask(100)
                await asyncio.sleep(0.3)  # somewhere in the middle of archiving
        await served.rig.send(served.model, b"garbage", partition=0, ce_id="g")
        await served.rig.outcomes(served.model, 241, within_s=40)
        with service("audit", audit_settings, None):
            await archived_up_to(audit_settings, await served.ends())
        raw = await served.rig.read(settings.topics.name(topics.OUTCOMES))

    in_kafka = await everything(kafka_source.open_source(settings), model=served.model)
    archived = await everything(archive_source.open_source(settings), model=served.model)
    assert len(archived) == 241
    compared = ("partition", "offset", "timestamp_ms", "key", "value", "receipt", "result")
    by_place = {outcome.at: outcome for outcome in archived}
    for outcome in in_kafka:
        mine = by_place[outcome.at]
        assert [getattr(mine, name) for name in compared] == [getattr(outcome, name) for name in compared]
        assert isinstance(mine.request, RecordedRequest)
        assert (mine.request.value, mine.request.key) == (outcome.request.value, outcome.request.key)
        assert (mine.request.headers, mine.request.timestamp_ms) == (
            outcome.request.headers,
            outcome.request.timestamp_ms,
        )
        assert isinstance(mine.result, Result)
    await check_chain(audit_settings, raw)

    async with kafka_source.open_source(settings) as log, archive_source.open_source(settings) as archive:
        entries = [entry async for entry in log.registry()]
        assert [entry async for entry in archive.registry()] == entries
    assert len(entries) == 4


async def check_chain(settings, raw):
    """Segments follow each other without a gap, and their heads and checkpoints are those of the records in Kafka."""
    store = ArchiveStore(settings.artifact_store_url)
    [log] = await archive_reader.logs_of(store, settings.topics.name(topics.OUTCOMES))
    key = signing.load(settings.audit_key_path).public_key
    assert settings.audit_key_path.stat().st_mode & 0o777 == 0o600
    for partition in await archive_reader.partitions_of(store, log):
        chain, position = Chain(), 0
        records = [record for record in raw if record.partition == partition]
        async for manifest in archive_reader.manifests(store, log, partition):
            assert manifest.first == position
            position = manifest.next
            for record in records:
                if manifest.first <= record.offset < manifest.next:
                    chain.add(record.key, record.value)
            assert (manifest.head, manifest.heads_sha256) == (chain.head.hex(), chain.so_far)
            chain.cut()
            stored = await store.get(log.checkpoint(partition, manifest.next))
            checkpoint = msgspec.json.decode(stored, type=signing.Checkpoint)
            assert checkpoint.signed_by(frozenset([key]))
            assert (checkpoint.read().head, checkpoint.read().offset) == (manifest.head, manifest.next)
        assert position == max((record.offset + 1 for record in records), default=0)


async def wipe(settings):
    """The broker's data of this test is lost."""
    admin = AIOKafkaAdminClient(**kafka.client_options(settings))
    await admin.start()
    try:
        ours = [name for name in await admin.list_topics() if name.startswith(settings.topic_prefix)]
        await admin.delete_topics(ours)

        async def gone():
            return not [name for name in await admin.list_topics() if name.startswith(settings.topic_prefix)]

        await eventually(gone, within_s=30, what="the topics gone")
    finally:
        await admin.close()


async def test_the_brokers_data_is_lost_and_the_platform_goes_on_from_the_archive(settings, audit_settings, backbone):
    model = backbone.model()
    async with serving(settings, model) as served:
        await served.ask(24)
        with service("audit", audit_settings, None):
            await archived_up_to(audit_settings, await served.ends())
            await registry_archived(audit_settings, 4)
    before = await everything(archive_source.open_source(settings), model=model)
    async with kafka_source.open_source(settings) as source:
        registry = [entry async for entry in source.registry()]
    await wipe(settings)

    assert (await verify(audit_settings, kafka=False)).as_map()["ok"]
    for source in (archive_source, joined_source):  # there is no topic left
        assert await everything(source.open_source(settings), model=model) == before
    assert len(before) == 24

    assert await restored(settings) == 4
    with pytest.raises(Conflict):
        await restored(settings)
    async with kafka_source.open_source(settings) as source:
        assert [entry async for entry in source.registry()] == registry
    async with rig(settings) as there:
        await there.ensure(model)
        async with worker_running(settings):
            with service("audit", audit_settings, None):
                for number in range(100, 108):
                    await there.send(model, body(number), partition=0, ce_id=f"r{number}")
                await there.outcomes(model, 8, within_s=60)
                ends = {record.partition: record.offset + 1 for record in await there.read(outcomes_topic(settings))}
                await archived_up_to(audit_settings, ends, life=1)
    report = (await verify(audit_settings)).as_map()
    assert report["ok"], report
    found = await everything(archive_source.open_source(settings), model=model)
    assert found[: len(before)] == before
    assert [outcome.receipt.request_id for outcome in found[24:]] == [f"r{number}" for number in range(100, 108)]
    [why] = await explained(settings, "auto", "r103", model)
    assert (why["agrees"], why["decided_by"]["event"], why["registry_offset"]) == (True, "ModelReady", 3)


def outcomes_topic(settings):
    return settings.topics.name(topics.OUTCOMES)


async def registry_archived(settings, count):
    async def look():
        async with archive_source.open_source(settings) as source:
            return len([entry async for entry in source.registry()]) == count

    await eventually(look, within_s=40, what="the registry's log in the archive")
