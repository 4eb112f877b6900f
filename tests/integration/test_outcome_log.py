"""The outcome log on a real Kafka: order, one partition per key, and what a failure leaves."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from shared import kafka, topics
from shared.errors import LogUnavailable
from shared.outcome_events import Runtime
from shared.outcomes import OutcomeWriter, Watermarks, read_outcome
from support.facts import encoded, receipt

pytestmark = pytest.mark.stack
REQUESTS = "t.requests.m"


@pytest.fixture
async def settings(backbone):
    settings = backbone.settings()
    await kafka.ensure_topics(settings)
    return settings


@pytest.fixture
async def writer(settings):
    async with OutcomeWriter(settings) as started:
        yield started


@pytest.fixture
async def producer(settings):
    async with kafka.started(lambda: kafka.producer(settings), "test") as client:
        yield client


@pytest.fixture
async def log(settings):
    """A function that reads all records of the outcome log, in order of partition and offset."""
    async with kafka.started(lambda: kafka.consumer(settings), "test") as consumer:
        name = settings.topics.name(topics.OUTCOMES)
        places = [TopicPartition(name, number) for number in range(topics.OUTCOMES.partitions)]
        consumer.assign(places)

        async def read():
            await consumer.seek_to_beginning()
            ends = await consumer.end_offsets(places)
            records = []
            while any([await consumer.position(place) < ends[place] for place in places]):
                fetched = await consumer.getmany(timeout_ms=1000)
                records += [record for of_partition in fetched.values() for record in of_partition]
            return sorted(records, key=lambda record: (record.partition, record.offset))

        yield read


def offsets(records):
    return [read_outcome(record.key, record.value).request.offset for record in records]


def accepted(records):
    reader = Watermarks()
    outcomes = [read_outcome(record.key, record.value) for record in records]
    return [outcome for outcome in outcomes if reader.accept(outcome)]


async def test_outcomes_lie_in_request_order_under_their_key(settings, writer, log):
    for start in range(0, 100, 10):
        await writer.append(REQUESTS, 0, encoded([receipt(offset) for offset in range(start, start + 10)]))
    records = await log()
    assert offsets(records) == list(range(100))
    assert {record.key for record in records} == {b"t.requests.m/0"}
    headers = dict(records[7].headers)
    assert (headers["ce_type"], headers["ce_id"]) == (b"Receipt", b"t.requests.m-0-7")
    assert headers["ce_source"] == settings.instance.encode()


async def test_all_outcomes_of_a_request_partition_lie_in_one_partition(writer, log, producer, settings):
    for partition in range(12):
        await writer.append(REQUESTS, partition, encoded([receipt(0, partition=partition)]))
        await writer.append(REQUESTS, partition, encoded([receipt(1, partition=partition)]))
    records = await log()
    places = {}
    for record in records:
        places.setdefault(record.key, set()).add(record.partition)
    assert all(len(found) == 1 for found in places.values())
    assert len({record.partition for record in records}) > 1
    # Where any client's default partitioner would put the key: readers may rely on it.
    for key, [partition] in places.items():
        there = await producer.send_and_wait(settings.topics.name(topics.OUTCOMES), b"", key=key)
        assert there.partition == partition


async def test_a_run_larger_than_a_batch_arrives_whole_and_in_order(writer, log):
    options = {f"option-{number}": "x" * 900 for number in range(10)}
    large = Runtime(engine="e", version="1", provider="p", options=options, threads=1, isa="i")
    await writer.append(REQUESTS, 0, encoded([receipt(offset, runtime=large) for offset in range(200)]))
    assert offsets(await log()) == list(range(200))


async def test_no_outcomes_no_records(writer, log):
    await writer.append(REQUESTS, 0, [])
    assert await log() == []


async def test_after_a_failed_append_the_run_from_the_committed_offset_is_exact(writer, log, monkeypatch):
    """The acknowledgement is lost, the records are not: they come twice in the log and count once."""
    committed = 3
    await writer.append(REQUESTS, 0, encoded([receipt(offset) for offset in range(committed)]))
    send = OutcomeWriter._send

    async def send_and_lose_the_answer(self, producer, builder, partition):
        await send(self, producer, builder, partition)
        raise KafkaTimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(OutcomeWriter, "_send", send_and_lose_the_answer)
        with pytest.raises(LogUnavailable, match=r"t\.requests\.m/0"):
            await writer.append(REQUESTS, 0, encoded([receipt(offset, status="failed") for offset in range(3, 6)]))
    await writer.append(REQUESTS, 0, encoded([receipt(offset) for offset in range(committed, 8)]))
    records = await log()
    assert offsets(records) == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    assert [outcome.request.offset for outcome in accepted(records)] == list(range(8))
    assert [outcome.status for outcome in accepted(records)] == ["succeeded"] * 3 + ["failed"] * 3 + ["succeeded"] * 2


async def test_a_failed_append_gets_a_fresh_producer(writer, log, monkeypatch):
    async def refuse(*_):
        raise MessageSizeTooLargeError

    before = writer._steady.producer
    with monkeypatch.context() as patch:
        patch.setattr(OutcomeWriter, "_send", refuse)
        with pytest.raises(LogUnavailable) as caught:
            await writer.append(REQUESTS, 0, encoded([receipt(0)]))
    assert caught.value.retriable
    assert writer._steady.producer is not before
    await writer.append(REQUESTS, 0, encoded([receipt(0)]))
    assert offsets(await log()) == [0]
