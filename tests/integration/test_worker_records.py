"""Whatever a producer does to a record beside its contract, the record ends and the next one flows."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka import Producer

from services.worker.settings import WorkerSettings
from shared import kafka
from support import onnx_models
from support.raw_batches import CODECS, Raw, batch, produce
from support.waiting import eventually
from support.worker_rig import rig, worker_running

pytestmark = pytest.mark.stack

ASKED = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
JSON = (b"content-type", b"application/json")
NOW_MS = int(time.time() * 1000)
_HOUR_MS = 3600 * 1000


@pytest.fixture
async def worker(backbone):
    settings = backbone.settings(WorkerSettings, threads=1, request_partitions=1)
    async with rig(settings) as there, worker_running(settings):
        yield there


@pytest.fixture
async def model(worker, backbone):
    name = backbone.model()
    await worker.upload(name, onnx_models.linear())
    return name


def asked(**fields):
    headers = (JSON, *fields.pop("headers", ()))
    return Raw(**{"value": ASKED, "key": b"k", **fields, "headers": headers})


UNUSUAL = {
    "no key": asked(key=None),
    "an empty key": asked(key=b""),
    "a key of 500 kB": asked(key=b"k" * 500_000),
    "a null header value": asked(headers=[(b"x-nothing", None), (b"traceparent", None), (b"x-trace", b"1")]),
    "a header of 100 kB": asked(headers=[(b"x-long", b"v" * 100_000)]),
    "10,000 headers": asked(headers=[(b"x-%d" % number, b"v") for number in range(10_000)]),
    "names twice": asked(headers=[(b"x-twice", b"1"), (b"x-twice", b"2"), (b"X-Twice", b"3")]),
    "a null id, which is none": asked(headers=[(b"ce_id", None)]),
    "an empty header name": asked(headers=[(b"", b"v")]),
    "a header name that is not UTF-8": asked(headers=[(b"x-\xff\xfe", b"v")]),
    "a header name with a surrogate": asked(headers=[(b"\xed\xa0\x80", b"v")]),
    "attributes above 127": asked(attributes=0xFF),
    "a wrong offset": asked(offset_delta=1000),
    "an offset before its batch": asked(offset_delta=-3),
}


@pytest.mark.parametrize("record", UNUSUAL.values(), ids=UNUSUAL)
async def test_an_unusual_record_is_answered_and_so_are_its_neighbours(worker, model, record):
    topic = worker.settings.topics.requests(model)
    await produce(worker.settings, topic, 0, batch(asked(), record, asked(), first_timestamp=NOW_MS))
    await worker.send(model, ASKED, ce_id="after", content_type="application/json")
    assert (await worker.result(model, "after")).status == "succeeded"
    outcomes = await worker.outcomes(model, 4)
    assert {at: receipt.status for at, receipt in outcomes.items()} == {(0, o): "succeeded" for o in range(4)}


BROKEN = {
    "no key and no value": batch(Raw(None)),
    "no value": batch(Raw(None, key=b"k", headers=[JSON])),
    "a null header that must not be": batch(asked(headers=[(b"deadline", None)])),
    "the content type of 100 kB": batch(Raw(ASKED, headers=[(b"content-type", b"a" * 100_000)])),
    "an id of 100 kB": batch(asked(headers=[(b"ce_id", b"a" * 100_000)])),
}
REFUSED = {
    "30 MB of nothing, compressed": batch(Raw(bytes(30_000_000), headers=[JSON]), codec="zstd"),
    "a key of 30 MB, compressed": batch(Raw(b"?", key=bytes(30_000_000), headers=[JSON]), codec="zstd"),
    "lengths that lie, compressed": batch(Raw(b"?", lie_bytes=3), asked(), codec="gzip"),
}
"""What the broker unpacks and then does not take: none of it ever reaches a worker's memory."""


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
async def test_a_broken_record_fails_alone_with_a_dead_letter(worker, model, content):
    await produce(worker.settings, worker.settings.topics.requests(model), 0, content)
    _, after = await worker.send(model, ASKED, ce_id="after", content_type="application/json")
    assert (await worker.result(model, "after")).status == "succeeded"
    outcomes = await worker.outcomes(model, after + 1)
    failed = {offset for (_, offset), receipt in outcomes.items() if receipt.status == "failed"}
    assert failed == set(range(after))
    letters = await worker.dead_letters(model)
    assert {int(dict(letter.headers)["x-original-offset"]) for letter in letters} == failed


@pytest.mark.usefixtures("apache_kafka")
@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
async def test_a_packed_batch_that_is_more_or_other_than_it_says_is_refused_by_the_broker(worker, model, content):
    with pytest.raises(KafkaError):
        await produce(worker.settings, worker.settings.topics.requests(model), 0, content)
    assert await worker.send(model, ASKED, ce_id="after", content_type="application/json") == (0, 0)
    assert (await worker.result(model, "after")).status == "succeeded"


@pytest.mark.usefixtures("apache_kafka")
async def test_bytes_after_a_packed_batch_do_not_reach_its_readers(worker, model):
    content = batch(asked(), codec="gzip", after=b"junk")
    await produce(worker.settings, worker.settings.topics.requests(model), 0, content)
    outcomes = await worker.outcomes(model, 1)
    assert outcomes[0, 0].status == "succeeded"


@pytest.mark.parametrize(
    "stamped_ms",
    [-1, -(2**62), 0, 1, pytest.param(NOW_MS + _HOUR_MS // 2, id="in-half-an-hour")],
)
async def test_no_time_stamp_is_too_absurd(worker, model, stamped_ms):
    topic = worker.settings.topics.requests(model)
    await produce(worker.settings, topic, 0, batch(asked(), Raw(b"garbage"), first_timestamp=stamped_ms))
    outcomes = await worker.outcomes(model, 2)
    assert [outcomes[0, offset].status for offset in range(2)] == ["succeeded", "failed"]
    assert all(0 <= receipt.timings_ns.queue < 2**63 for receipt in outcomes.values())


@pytest.mark.parametrize("codec", [*CODECS])
async def test_upstream_chooses_the_compression(worker, model, codec):
    producer = Producer(
        {"bootstrap.servers": worker.settings.kafka_bootstrap_servers, "compression.type": codec, "linger.ms": 200}
    )
    for number in range(50):
        headers = [("ce_id", f"{codec}{number}"), ("content-type", "application/json")]
        producer.produce(worker.settings.topics.requests(model), ASKED, headers=headers)
    await asyncio.to_thread(producer.flush, 10)
    outcomes = await worker.outcomes(model, 50)
    assert {receipt.status for receipt in outcomes.values()} == {"succeeded"}


async def test_committed_transactions_are_answered_and_aborted_ones_leave_no_outcome(worker, model):
    topic = worker.settings.topics.requests(model)
    producer = Producer({"bootstrap.servers": worker.settings.kafka_bootstrap_servers, "transactional.id": topic})
    await asyncio.to_thread(producer.init_transactions, 10)
    for number in range(4):
        producer.begin_transaction()
        for part in range(3):
            headers = [("ce_id", f"t{number}-{part}"), ("content-type", "application/json")]
            producer.produce(topic, ASKED, headers=headers)
        end = producer.abort_transaction if number % 2 else producer.commit_transaction
        await asyncio.to_thread(end, 10)
    _, last = await worker.send(model, ASKED, ce_id="after", content_type="application/json")
    assert (await worker.result(model, "after")).status == "succeeded"

    outcomes = await worker.outcomes(model, 7)
    answered = {"t0-0", "t0-1", "t0-2", "t2-0", "t2-1", "t2-2", "after"}
    assert {receipt.request_id for receipt in outcomes.values()} == answered
    assert {receipt.status for receipt in outcomes.values()} == {"succeeded"}
    # Markers and what was aborted are holes in the offsets, not in what is committed.
    assert max(offset for _, offset in outcomes) == last > len(outcomes)
    options = {"group_id": worker.settings.topics.worker_group(model)}
    async with kafka.started(lambda: kafka.consumer(worker.settings, **options), "test") as consumer:
        await eventually(lambda: committed(consumer, TopicPartition(topic, 0), last + 1))


async def committed(consumer, partition, offset):
    return await consumer.committed(partition) == offset


@pytest.mark.usefixtures("apache_kafka")
async def test_a_reply_copy_that_is_refused_costs_no_other(backbone):
    """Echoed headers make one copy too large for its topic; those after it go through."""
    settings = backbone.settings(WorkerSettings, threads=1, request_partitions=1)
    settings = settings.model_copy(update={"reply_topic_prefixes": (f"copy-{settings.topic_prefix}",)})
    elsewhere = settings.model_copy(update={"topic_prefix": f"copy-{settings.topic_prefix}", "request_partitions": 1})
    name = backbone.model()
    await kafka.ensure_topics(elsewhere, name)
    reply_topic = elsewhere.topics.requests(name)
    async with rig(settings) as there, worker_running(settings):
        await there.upload(name, onnx_models.linear())
        for number, size_bytes in enumerate((10, 1024**2 - 400, 10, 10)):
            headers = [(b"reply-topic", reply_topic.encode()), (b"x-size", b"v" * size_bytes)]
            record = asked(headers=headers)
            await produce(settings, settings.topics.requests(name), 0, batch(record))
            await there.send(name, ASKED, ce_id=f"then{number}", content_type="application/json")
        await there.outcomes(name, 8)

        async def copies():
            return len(await there.read(reply_topic)) == 3

        await eventually(copies, what="three copies")
