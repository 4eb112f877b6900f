"""Ten thousand fuzzed requests, half by HTTP and half as records: nothing breaks, nothing stays, and who asked right is
answered right beside all of it.

`AIAAS_TEST_FUZZ_SEED` makes it another ten thousand.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter

import numpy as np
import onnxruntime
import orjson
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from shared.tensors import from_json, to_numpy
from support import fuzz_http, fuzz_kafka, onnx_models
from support.front_door import body
from support.fuzz import Fuzz, Numbers, Texts
from support.small_stack import small_stack
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("apache_kafka")]
SEED = int(os.environ.get("AIAAS_TEST_FUZZ_SEED", "20261123"))
BY_HTTP = BY_KAFKA = 5000
CALLERS = 24
PARTITIONS = 4
LINEAR = onnx_models.linear()


@pytest.fixture
async def there(backbone, tmp_path):
    async with small_stack(backbone, tmp_path, workers=2) as stack:
        yield stack


@pytest.fixture
async def models(there, backbone):
    session = onnxruntime.InferenceSession(LINEAR.content)
    numbers = Numbers(backbone.model(), lambda x: session.run(None, {"x": x})[0])
    texts = Texts(backbone.model())
    await there.serve(numbers.name, LINEAR)
    await there.serve(texts.name, onnx_models.identity("BYTES"))
    return numbers, texts


def answered(headers, content):
    """The output of an answer over HTTP, in either form."""
    length = headers.get("inference-header-content-length")
    document = json.loads(content[: int(length)] if length else content)
    [output] = document["outputs"]
    assert "data" in output, "who does not ask for binary gets JSON"
    return to_numpy(from_json("y", output["datatype"], tuple(output["shape"]), output["data"]))


def same(found, expected):
    if expected.dtype == object:
        return found.shape == expected.shape and found.tolist() == expected.tolist()
    return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def wrong_with(request, answer):
    """What an answer over HTTP should not be; None if it is honest."""
    if answer.status is None:
        return None if request.broken else "no answer"
    told = f"{answer.status} {answer.body[:300]!r}"
    if request.ask.expected is not None:
        if answer.status == 503 and "retry-after" in answer.headers:
            return None
        if answer.status != 200:
            return told
        content = fuzz_http.inflated(answer)
        return None if same(answered(answer.headers, content), request.ask.expected) else f"wrong: {told}"
    if answer.status == 503:
        return None if "retry-after" in answer.headers else told
    if answer.status == 504:
        return None if request.may_expire else told
    return None if 200 <= answer.status < 500 else told


async def ask_all(there, fuzz, rng):
    """The answers by status, and what was wrong with them."""
    found, violations, left = Counter(), [], iter(range(BY_HTTP))

    async def caller():
        connection = fuzz_http.Connection(int(there.gateway_url.rpartition(":")[2]))
        for _ in left:
            request = fuzz_http.sent(fuzz, rng)
            try:
                answer = await connection.ask(request)
            except TimeoutError:
                violations.append(("no answer in time", request.raw[:1500]))
                continue
            found[answer.status, request.ask.expected is not None] += 1
            if (problem := wrong_with(request, answer)) is not None:
                violations.append((problem, request.raw[:1500]))
        await connection.close()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return found, violations


def produce_all(there, fuzz, rng):
    """Put all records on the log; returns those that are right, by model and id."""
    producer = Producer({"bootstrap.servers": there.door.bootstrap_servers, "linger.ms": 5, "log_level": 0})
    right, lost = {}, []

    def delivered(error, _message):
        if error is not None:
            lost.append(error)

    for number in range(BY_KAFKA):
        record = fuzz_kafka.record(fuzz, rng, number)
        topic = there.door.topics.requests(record.ask.model, high=record.high)
        value, headers = fuzz_kafka.value_of(record, rng), record.headers
        partition = rng.randrange(PARTITIONS)
        producer.produce(topic, value, key=record.key, headers=headers, partition=partition, on_delivery=delivered)
        producer.poll(0)
        if record.id is not None:
            right[record.ask.model, record.id] = record.ask.expected
    assert producer.flush(30) == 0
    assert lost == []
    return right


async def one_outcome_each(there, models):
    """Every record of every topic has exactly one outcome; by status."""
    topics = [there.door.topics.requests(model.name, high=high) for model in models for high in (True, False)]
    wanted = set()
    for topic in topics:
        records = await asyncio.to_thread(there.door.log(topic).poll)
        wanted |= {(topic, record.partition(), record.offset()) for record in records}
    outcomes = there.door.outcomes()

    async def look():
        await asyncio.to_thread(outcomes.poll)
        missing = wanted - outcomes.accepted.keys()
        assert not missing, f"{len(missing)} of {len(wanted)} have no outcome, such as {sorted(missing)[:5]}"
        return True

    await eventually(look, within_s=60, what="an outcome of every record")
    assert set(outcomes.accepted) == wanted
    return Counter((receipt.status, receipt.error_code) for receipt in outcomes.accepted.values())


async def nothing_waits(there, models):
    """All offsets are committed, and no run is marked as being on."""
    client = {"bootstrap.servers": there.door.bootstrap_servers}
    admin, consumer = AdminClient(client), Consumer(client | {"group.id": "fuzz-looks"})

    def lag(model):
        group = there.door.topics.worker_group(model.name)
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
        committed = {(at.topic, at.partition): at.offset for at in asked[group].result(10).topic_partitions}
        ends = {
            (topic, number): consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
            for topic in (there.door.topics.requests(model.name, high=high) for high in (True, False))
            for number in range(PARTITIONS)
        }
        return {where: end - committed.get(where, 0) for where, end in ends.items() if end != committed.get(where, 0)}

    async def look():
        for model in models:
            behind = await asyncio.to_thread(lag, model)
            assert not behind, behind
            assert not await there.rig.replies.running(model.name)
        return True

    await eventually(look, within_s=10, what="all offsets committed")
    consumer.close()


async def right_results(there, right):
    """What is wrong with the results of the right records."""
    violations, keys = [], list(right)
    for start in range(0, len(keys), 200):
        chunk = keys[start : start + 200]
        for key, result in zip(chunk, await there.rig.replies.get(chunk), strict=True):
            if result is None or result.status != "succeeded":
                violations.append((key, result and result.error))
            elif not same(to_numpy(result.outputs[0]), right[key]):
                violations.append((key, "a wrong answer"))
    return violations


def complaints(there):
    """Lines of the services that speak of a bug: every request is told what is wrong with it, and no more."""
    lines = [line for path in there.logs.glob("*.log") for line in path.read_text(errors="replace").splitlines()]
    return [line for line in lines if '"level":"error"' in line or "Traceback" in line or "could not be" in line]


async def test_ten_thousand_fuzzed_bodies_and_records(there, models, record_property):
    processes = [there.gateway, *there.workers]
    by_http, by_kafka = random.Random(SEED), random.Random(SEED + 1)
    producing = asyncio.to_thread(produce_all, there, Fuzz(by_kafka, models), by_kafka)
    asking = ask_all(there, Fuzz(by_http, models), by_http)
    right, (found, violations) = await asyncio.gather(producing, asking)
    outcomes = await one_outcome_each(there, models)
    violations += await right_results(there, right)
    await nothing_waits(there, models)
    record_property("http", str(sorted(found.items(), key=str)))
    record_property("outcomes", str(sorted(outcomes.items(), key=str)))
    assert not violations, f"{len(violations)}: {violations[:20]}"
    assert complaints(there) == []
    assert [process.poll() for process in processes] == [None] * 3
    assert min(len(right), sum(count for (status, was_right), count in found.items() if was_right)) > BY_HTTP / 8
    told = {status for (_, _), status in ((key, key[0]) for key in outcomes)}
    assert {"succeeded", "failed", "expired"} <= told
    for model in models:
        response = await there.door.http.get(f"/v2/models/{model.name}/ready")
        assert response.status_code == 200
    last = await there.door.http.post(
        f"/v2/models/{models[0].name}/infer", content=body({"x": np.ones((1, 4), np.float32)})
    )
    assert last.status_code == 200, orjson.loads(last.content)
