"""What the monitor publishes of each version: exact, never lower than before, and the same after SIGKILL."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition

from services.monitor.settings import MonitorSettings
from shared import kafka, statistics, topics
from shared.codec import decode_event
from shared.outcome_events import BatchMembership, ModelStatistics, Timings
from shared.outcomes import OutcomeWriter
from support.facts import encoded, receipt
from support.monitor_process import Monitor
from support.ports import free_port
from support.waiting import eventually

pytestmark = pytest.mark.stack
INFER_NS = 1000


@pytest.fixture
def settings(backbone):
    # So rare a snapshot that a kill loses what was folded, and it is folded again.
    return backbone.settings(MonitorSettings, monitor_port=free_port(), monitor_snapshot_interval_s=600)


@pytest.fixture
def monitor(settings):
    monitor = Monitor(settings)
    yield monitor
    monitor.kill()


def batch_of(settings, version, first, size, rows=1):
    """The receipts of one run, whose members lie in two request partitions, in turn, with so many rows each."""
    members = range(first, first + size)
    topic = settings.topics.requests("m")
    return [
        (
            number % 2,
            receipt(
                number // 2,
                topic=topic,
                partition=number % 2,
                model_version=version,
                batch=BatchMembership(
                    id=f"b{first}",
                    index=index,
                    size=size,
                    padding=0,
                    members_sha256="0" * 64,
                    rows=rows,
                    total_rows=rows * size,
                ),
                timings_ns=Timings(queue=10, compute_input=1, compute_infer=INFER_NS, compute_output=2),
            ),
        )
        for index, number in enumerate(members)
    ]


async def append(settings, receipts):
    async with OutcomeWriter(settings) as writer:
        for partition in (0, 1):
            of = [each for at, each in receipts if at == partition]
            await writer.append(settings.topics.requests("m"), partition, encoded(of))


async def published(settings):
    """Every event so far, in order."""
    async with kafka.started(lambda: kafka.consumer(settings), "test") as consumer:
        partition = TopicPartition(settings.topics.name(topics.STATISTICS), 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end, events = (await consumer.end_offsets([partition]))[partition], []
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                events += [(record.key, decode_event(ModelStatistics, record.value)) for record in records]
        return events


async def test_statistics_are_exact_and_survive_a_kill(settings, monitor):
    await kafka.ensure_topics(settings)
    await kafka.ensure_topics(settings, "m")
    async with kafka.started(lambda: kafka.producer(settings), "test") as producer:
        for number in range(40):
            await producer.send_and_wait(settings.topics.requests("m"), b"{}", partition=number % 2)
    early = [*batch_of(settings, 1, 0, 4), *batch_of(settings, 1, 4, 1), *batch_of(settings, 2, 5, 7)]
    late = [*batch_of(settings, 1, 12, 8), *batch_of(settings, 1, 20, 4, rows=3)]

    async with statistics.follow(settings) as followed:
        monitor.start()
        await append(settings, early)
        await eventually(lambda: _counts(followed) == {1: (5, 2), 2: (7, 1)}, within_s=30)
        before = followed.of("m", 2)
        monitor.kill()
        await append(settings, early[-3:])  # a zombie's repeats
        await append(settings, late)
        monitor.start()
        await eventually(lambda: _counts(followed) == {1: (25, 4), 2: (7, 1)}, within_s=30)
        first, second = followed.of("m", 1), followed.of("m", 2)

    assert first.success.ns == 17 * (10 + 1 + INFER_NS + 2)
    assert {run.batch_size: (run.compute_infer.count, run.compute_infer.ns) for run in first.runs} == {
        1: (1, INFER_NS),
        4: (1, INFER_NS),
        8: (1, INFER_NS),
        12: (1, INFER_NS),
    }
    assert (second.success, second.runs) == (before.success, before.runs)
    assert sum(first.offsets.values()) == len(early) + 3 + len(late)
    told = await published(settings)
    assert {key for key, _ in told} == {b"m/1", b"m/2"}
    for version in (1, 2):
        counts = [event.success.count for _, event in told if event.version == version]
        assert counts == sorted(counts)


def _counts(followed):
    held = {version: followed.of("m", version) for version in (1, 2)}
    return {version: (event.inferences, event.executions) for version, event in held.items() if event}
