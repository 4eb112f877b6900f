"""Kafka's retention passes: what is archived is read from the archive, the rest from Kafka, and every audit works."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from services.audit import joined_source, kafka_source
from services.audit.commands import explained, exported
from services.audit.records import RecordedRequest, Selection
from services.audit.replay import use
from services.audit.state import state
from services.audit.verify.run import verify
from services.worker.settings import WorkerSettings
from shared import kafka, topics
from shared.results import Result
from support.archive import archived_up_to, archiving, everything
from support.processes import service
from support.served import serving

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("apache_kafka")]
OLD, NEW = 40, 20


@pytest.fixture
def settings(backbone):
    return backbone.settings(WorkerSettings, threads=1)


@pytest.fixture
def audit_settings(settings, backbone):
    return archiving(backbone, settings, segment_rows=8)


async def forgotten(settings, topic, ends):
    """Retention has taken the records of a topic up to these offsets."""
    admin = AIOKafkaAdminClient(**kafka.client_options(settings))
    await admin.start()
    try:
        await admin.delete_records(
            {TopicPartition(topic, number): RecordsToDelete(before_offset=end) for number, end in ends.items()}
        )
    finally:
        await admin.close()


async def test_audits_outlive_kafkas_retention_without_being_told_where_to_read(
    settings, audit_settings, backbone, tmp_path
):
    async with serving(settings, backbone.model()) as served:
        places = await served.ask(OLD)
        with service("audit", audit_settings, None):
            ends = await served.ends()
            await archived_up_to(audit_settings, ends)
        found = await state(audit_settings, 10)
        assert (found.archived, found.waiting, found.lost, found.goes_on) == (OLD, 0, 0, True)
        assert found.key == found.checkpoint_key
        assert found.key_is_private
        await served.ask(NEW)
        found = await state(audit_settings, 10)
        assert (found.archived, found.waiting) == (OLD, NEW)
        assert 0 < found.waiting_s < 600

        asked = {"model": served.model}
        in_kafka = await everything(kafka_source.open_source(settings), **asked)
        both = await everything(joined_source.open_source(settings), **asked)
        assert [outcome.at for outcome in both] == [outcome.at for outcome in in_kafka]
        assert len(both) == OLD + NEW

        old_requests = {number: 1 + max(offset for at, offset in places if at == number) for number in range(4)}
        await forgotten(settings, served.topic, old_requests)
        await forgotten(settings, settings.topics.name(topics.OUTCOMES), ends)
        assert len(await everything(kafka_source.open_source(settings), **asked)) == NEW
        again = await everything(joined_source.open_source(settings), **asked)
        assert [(o.at, o.receipt, o.timestamp_ms) for o in again] == [(o.at, o.receipt, o.timestamp_ms) for o in both]
        assert all(isinstance(o.request, RecordedRequest) and isinstance(o.result, Result) for o in again)
        one = again[3]
        assert await everything(
            joined_source.open_source(settings), request_ids=frozenset([one.receipt.request_id])
        ) == [one]

        report = (await verify(audit_settings)).as_map()
        assert report["ok"], report
        assert (report["counts"]["requests"], report["counts"]["kafka_requests"]) == (OLD, NEW)
        [why] = await explained(settings, "auto", one.receipt.request_id, None)
        assert (why["agrees"], why["decided_by"]["event"]) == (True, "ModelReady")
        summary = await use.replay(settings, use.Where(), Selection(**asked), lambda *_: None)
        assert (summary.counts["identical"], summary.replayed) == (OLD + NEW, OLD + NEW), summary.as_map()

    out = tmp_path / "bundle"
    assert (await exported(settings, served.model, None, None, out))["requests"] == OLD
    command = [sys.executable, "-I", "-S", str(out / "verify.py")]
    checked = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    with service("audit", audit_settings, None):
        await archived_up_to(audit_settings, ends_of(in_kafka))
    whole = await everything(joined_source.open_source(settings), **asked)
    assert [o.receipt for o in whole] == [o.receipt for o in both]


def ends_of(outcomes):
    """Where the outcome log ended, by what was read of it."""
    ends = {}
    for outcome in outcomes:
        ends[outcome.partition] = max(outcome.offset + 1, ends.get(outcome.partition, 0))
    return ends
