"""The intake never skips a record: what was fetched before a partition was lost is not taken after."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from services.worker.intake import HeldBytes, Intake
from services.worker.ledger import Outcome
from services.worker.model_server import ModelServer
from services.worker.settings import WorkerSettings
from shared.codec import decode_event
from shared.errors import LogUnavailable
from shared.outcome_events import Receipt
from shared.registry import Registry
from support.facts import encoded, receipt
from support.waiting import eventually

TOPIC = "aiaas.requests.m"
FIRST, SECOND = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)


class FakeConsumer:
    """Hands out what the test puts there, and remembers where it was told to go."""

    def __init__(self):
        self.fetched, self.seeks, self.committed = asyncio.Queue(), [], {}

    def assignment(self):
        return {FIRST, SECOND}

    def paused(self):
        return set()

    def highwater(self, _):
        return 0

    def resume(self, *partitions):
        pass

    async def getmany(self, *_, **__):
        return await self.fetched.get()

    def seek(self, partition, offset):
        self.seeks.append((partition, offset))

    async def commit(self, offsets):
        self.committed |= {partition: there.offset for partition, there in offsets.items()}


class FakeWriter:
    def __init__(self):
        self.appended, self.failing = [], False

    async def append(self, _topic, partition, receipts):
        if self.failing:
            raise LogUnavailable("Kafka is away")
        self.appended += [(partition, decode_event(Receipt, value).request.offset) for _, value in receipts]


class SlowReplies:
    """Answers `count_deaths` only when the test says so."""

    def __init__(self):
        self.asked, self.answer, self.times_asked = asyncio.Event(), asyncio.Event(), 0

    async def count_deaths(self, *_):
        self.times_asked += 1
        self.asked.set()
        await self.answer.wait()
        return {}


class NoCopies:
    async def send(self, copies):
        assert copies == []


def records(partition, *offsets):
    return [
        SimpleNamespace(topic=TOPIC, partition=partition.partition, offset=offset, value=b"{}", headers=[], key=None)
        for offset in offsets
    ]


@pytest.fixture
def settled():
    return []


@pytest.fixture
async def intake(settled):
    made = Intake(
        settings=WorkerSettings(),
        server=ModelServer("m", Registry(), None, settled.extend, 1000),
        registry_log=None,
        replies=SlowReplies(),
        writer=FakeWriter(),
        copies=NoCopies(),
        held=HeldBytes(10_000),
        queued=lambda: None,
    )
    made._consumer = FakeConsumer()
    return made


def complete(intake, job):
    job.ledger.complete(job.record.offset, Outcome(*encoded([receipt(job.record.offset)])[0]))
    intake.completed([job])


async def test_a_partition_keeps_its_ledger_when_all_its_rows_are_done(intake, settled):
    intake._replies.answer.set()
    for offset in range(3):
        await intake._consumer.fetched.put({FIRST: records(FIRST, offset)})
        await intake._take()
        complete(intake, settled[offset])
        await intake._flush(list(intake._ledgers.values()))
    assert len({job.ledger for job in settled}) == 1
    assert intake._replies.times_asked == 1


async def test_records_in_hand_when_partitions_are_revoked_are_not_taken(intake, settled):
    await intake._consumer.fetched.put({FIRST: records(FIRST, 5), SECOND: records(SECOND, 7, 8)})
    taking = asyncio.create_task(intake._take())
    await intake._replies.asked.wait()  # the first partition is being opened, the second is still in hand
    await intake.on_partitions_revoked([FIRST, SECOND])
    intake._replies.answer.set()
    await taking
    assert settled == []
    assert intake._ledgers == {}


async def test_a_failed_append_starts_its_partition_again_where_it_committed(intake, settled):
    intake._replies.answer.set()
    await intake._consumer.fetched.put({FIRST: records(FIRST, 5, 6)})
    await intake._take()
    complete(intake, settled[0])
    await intake._flush(list(intake._ledgers.values()))
    assert intake._consumer.committed == {FIRST: 6}

    complete(intake, settled[1])
    intake._writer.failing = True
    flushing = asyncio.create_task(intake._flush(list(intake._ledgers.values())))
    await eventually(lambda: intake._consumer.seeks)
    assert intake._consumer.seeks == [(FIRST, 6)]
    intake._writer.failing = False
    await flushing

    await intake._consumer.fetched.put({FIRST: records(FIRST, 6, 7)})
    await intake._take()
    for job in settled[2:]:
        complete(intake, job)
    await intake._flush(list(intake._ledgers.values()))
    assert intake._writer.appended == [(0, 5), (0, 6), (0, 7)]
    assert intake._consumer.committed == {FIRST: 8}


async def test_records_in_hand_when_their_partition_starts_again_are_not_taken(intake, settled):
    intake._replies.answer.set()
    await intake._consumer.fetched.put({SECOND: records(SECOND, 3)})
    await intake._take()
    [job] = settled
    intake._replies.answer.clear()
    intake._replies.asked.clear()
    await intake._consumer.fetched.put({FIRST: records(FIRST, 5), SECOND: records(SECOND, 4)})
    taking = asyncio.create_task(intake._take())
    await intake._replies.asked.wait()
    complete(intake, job)
    intake._writer.failing = True
    flushing = asyncio.create_task(intake._flush([job.ledger]))
    await eventually(lambda: intake._consumer.seeks)
    intake._replies.answer.set()
    await asyncio.gather(taking, flushing)
    assert intake._consumer.seeks == [(SECOND, 3)]
    assert [(j.record.partition, j.record.offset) for j in settled] == [(1, 3), (0, 5)]


async def test_lost_partitions_let_their_late_answers_go_nowhere(intake, settled):
    intake._replies.answer.set()
    await intake._consumer.fetched.put({FIRST: records(FIRST, 5)})
    await intake._take()
    intake._settings = intake._settings.model_copy(update={"drain_s": 0.01})
    await intake.on_partitions_revoked([FIRST])
    complete(intake, settled[0])
    await intake._flush(list(intake._ledgers.values()))
    assert intake._writer.appended == []
