"""The archive on real Kafka and Redis: exactly what was recorded, through kills, once."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from services.audit import archive_reader, archive_source, kafka_source, signing
from services.audit.chain import Chain
from services.audit.records import RecordedRequest, Selection
from services.audit.settings import AuditSettings
from services.audit.store import ArchiveStore
from services.worker.settings import WorkerSettings
from shared import topics
from shared.results import Result
from support.archive import archived_up_to
from support.processes import service
from support.served import serving

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("apache_kafka")]


@pytest.fixture
def settings(backbone):
    return backbone.settings(WorkerSettings, threads=1)


@pytest.fixture
def audit_settings(settings, backbone):
    shared = {"topic_prefix": settings.topic_prefix, "artifact_store_url": settings.artifact_store_url}
    return backbone.settings(AuditSettings, audit_interval_s=0.2, audit_segment_rows=40, **shared)


async def everything(opened, **selected):
    async with opened as source:
        return [outcome async for outcome in source.outcomes(Selection(**selected))]


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

    async with kafka_source.open_source(settings) as kafka, archive_source.open_source(settings) as archive:
        entries = [entry async for entry in kafka.registry()]
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
