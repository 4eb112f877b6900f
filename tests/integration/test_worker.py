"""The worker on real Kafka and Redis, requests from `confluent-kafka`."""

from __future__ import annotations

import asyncio
import hashlib
import time

import numpy as np
import onnxruntime as ort
import orjson
import pytest

from services.worker.settings import WorkerSettings
from shared.codec import pack, unpack
from shared.events import ModelPromoted, ModelRolledBack
from shared.tensors import DTYPES, Tensor, from_numpy, output_digest, to_numpy
from shared.topics import OUTCOMES
from support import onnx_models
from support.garbage import garbage
from support.worker_rig import rig, worker_running

pytestmark = pytest.mark.stack


@pytest.fixture
async def worker(backbone):
    settings = backbone.settings(WorkerSettings, threads=1)
    async with rig(settings) as there, worker_running(settings):
        yield there


def body(array, *, outputs=None):
    tensor = {"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor]} | ({"outputs": outputs} if outputs else {}))


async def test_a_json_request_straight_from_kafka_is_answered_and_leaves_one_outcome(worker, backbone):
    name, model = backbone.model(), onnx_models.linear()
    await worker.upload(name, model)
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)

    partition, offset = await worker.send(name, body(x), ce_id="one", content_type="application/json")

    result = await worker.result(name, "one")
    expected = ort.InferenceSession(model.content).run(None, {"x": x})[0]
    assert result.status == "succeeded"
    assert to_numpy(result.outputs[0]).tobytes() == expected.tobytes()
    outcomes = await worker.outcomes(name, 1)
    receipt = outcomes[partition, offset]
    assert receipt.status == "succeeded"
    assert receipt.output_sha256 == output_digest(result.outputs)
    assert (receipt.model_version, receipt.variant) == (1, "fp32")
    assert receipt.runtime is not None
    assert receipt.runtime.provider == "CPUExecutionProvider"
    assert receipt.batch is not None
    assert (receipt.batch.size, receipt.batch.rows, receipt.batch.total_rows) == (1, 2, 2)


@pytest.mark.parametrize("datatype", list(DTYPES))
async def test_every_datatype_comes_back_bit_by_bit(worker, backbone, datatype):
    name = backbone.model()
    await worker.upload(name, onnx_models.identity(datatype))
    if datatype == "BYTES":
        sent = from_numpy("x", np.array([["a", "é", ""]], dtype=object))
    else:
        count = 3 * DTYPES[datatype].itemsize
        data = np.random.default_rng(2).integers(0, 2 if datatype == "BOOL" else 256, count, np.uint8).tobytes()
        sent = Tensor("x", datatype, (1, 3), data)
    value = pack({"inputs": [{"name": "x", "datatype": datatype, "shape": [1, 3], "data": bytes(sent.data)}]})

    await worker.send(name, value, ce_id="it", content_type="application/msgpack")

    result = await worker.result(name, "it")
    assert result.status == "succeeded", result.error
    assert bytes(result.outputs[0].data) == bytes(sent.data)


async def test_what_queued_up_runs_in_one_batch(worker, backbone):
    name, model = backbone.model(), onnx_models.linear()
    rows = np.random.default_rng(3).standard_normal((20, 4)).astype(np.float32)
    # Queued before the model can answer: all of it is there when it can.
    await worker.upload(name, onnx_models.linear(seed=9))
    for index in range(20):
        await worker.send(name, body(rows[index : index + 1]), ce_id=f"r{index}", partition=0)
    outcomes = await worker.outcomes(name, 20)
    assert {receipt.status for receipt in outcomes.values()} == {"succeeded"}
    for receipt in outcomes.values():
        assert receipt.batch is not None
        assert 0 <= receipt.batch.index < receipt.batch.size <= model.batch_cap


async def test_garbage_gets_a_failed_outcome_and_a_dead_letter_and_what_follows_flows(worker, backbone):
    name = backbone.model()
    await worker.upload(name, onnx_models.linear())
    good = body(np.ones((1, 4), np.float32))
    await worker.send(name, good, ce_id="warm", partition=0)
    await worker.result(name, "warm")
    misshapen = body(np.ones((1, 5), np.float32))
    records = garbage(good, misshapen, worker.settings.topics.name(OUTCOMES))
    started_s = time.monotonic()
    for value, headers in records:
        await worker.send(name, value, partition=0, **headers)
    await worker.send(name, good, ce_id="after", partition=0)

    assert (await worker.result(name, "after")).status == "succeeded"
    outcomes = await worker.outcomes(name, len(records) + 2)
    failed = {receipt.request.offset for receipt in outcomes.values() if receipt.status == "failed"}
    assert failed == set(range(1, len(records) + 1))
    letters = await worker.dead_letters(name)
    assert sorted(int(dict(letter.headers)["x-original-offset"]) for letter in letters) == sorted(failed)
    assert time.monotonic() - started_s < 20


async def test_one_bad_row_does_not_hurt_its_neighbours(worker, backbone):
    name = backbone.model()
    await worker.upload(name, onnx_models.gather())
    for index, wanted in enumerate([1, 2, 99, 3]):
        tensor = {"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [wanted]}
        await worker.send(name, orjson.dumps({"inputs": [tensor]}), ce_id=f"g{index}", partition=0)
    outcomes = await worker.outcomes(name, 4)
    assert [outcomes[0, offset].status for offset in range(4)] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert outcomes[0, 2].error_code == "execution_failed"


async def test_the_same_id_twice_is_run_once_and_another_request_under_it_conflicts(worker, backbone):
    name = backbone.model()
    await worker.upload(name, onnx_models.linear())
    one, other = body(np.ones((1, 4), np.float32)), body(np.zeros((1, 4), np.float32))
    # Two at once, on two partitions: one of them is first, and which is not for us to say.
    first, again = await asyncio.gather(*(worker.send(name, one, ce_id="same", partition=p) for p in range(2)))
    await worker.outcomes(name, 2)
    conflicting = await worker.send(name, other, ce_id="same", partition=0)
    tenant = await worker.send(name, one, ce_id="same", partition=2, tenant="someone")

    outcomes = await worker.outcomes(name, 4)
    owner = min((first, again), key=lambda at: outcomes[at].duplicate_of is not None)
    duplicate = outcomes[first if owner == again else again]
    assert outcomes[owner].duplicate_of is None
    assert (duplicate.duplicate_of.partition, duplicate.duplicate_of.offset) == owner
    assert duplicate.output_sha256 == outcomes[owner].output_sha256
    assert duplicate.batch is None
    assert {outcomes[conflicting].error_code, outcomes[tenant].error_code} == {"id_conflict"}


async def test_a_run_beyond_its_deadline_is_ended(backbone):
    settings = backbone.settings(WorkerSettings, threads=1, max_run_s=0.5)
    async with rig(settings) as there, worker_running(settings):
        name = backbone.model()
        await there.upload(name, onnx_models.counting_loop())

        def ask(trips):
            return orjson.dumps(
                {
                    "inputs": [
                        {"name": "x", "datatype": "FP32", "shape": [1], "data": [0]},
                        {"name": "trips", "datatype": "INT64", "shape": [1], "data": [trips]},
                    ]
                }
            )

        await there.send(name, ask(10**12), ce_id="endless", partition=0)
        await there.send(name, ask(3), ce_id="short", partition=0)
        assert (await there.result(name, "endless")).error["code"] == "run_timeout"
        short = await there.result(name, "short")
        assert to_numpy(short.outputs[0]).tolist() == [3.0]


async def test_an_expired_request_is_not_run_and_a_cancelled_one_neither(worker, backbone):
    name = backbone.model()
    await worker.upload(name, onnx_models.linear())
    value = body(np.ones((1, 4), np.float32))
    await worker.replies.cancel(name, "cancelled")
    late = await worker.send(name, value, ce_id="late", deadline=str(int(time.time() * 1000) - 1))
    cancelled = await worker.send(name, value, ce_id="cancelled")
    outcomes = await worker.outcomes(name, 2)
    assert (outcomes[late].status, outcomes[late].error_code) == ("expired", "deadline_exceeded")
    assert outcomes[cancelled].status == "cancelled"
    assert outcomes[late].batch is outcomes[cancelled].batch is None


async def test_versions_switch_without_a_failed_request(worker, backbone):
    name = backbone.model()
    await worker.upload(name, onnx_models.linear(seed=1))
    value = body(np.ones((1, 4), np.float32))
    ids = []
    for round_ in range(3):
        for index in range(10):
            ids.append(f"v{round_}-{index}")
            await worker.send(name, value, ce_id=ids[-1])
        if round_ == 0:
            await worker.upload(name, onnx_models.linear(seed=2))
            await worker.log.publish(ModelPromoted(model=name, version=2))
        if round_ == 1:
            await worker.log.publish(ModelRolledBack(model=name))
    results = [await worker.result(name, id_) for id_ in ids]
    assert {result.status for result in results} == {"succeeded"}
    assert {result.model_version for result in results} >= {1}
    for result in results:
        assert unpack(result.receipt)["model_version"] == result.model_version


async def test_a_restarted_worker_goes_on_where_the_last_one_committed(backbone):
    settings = backbone.settings(WorkerSettings, threads=1)
    async with rig(settings) as there:
        name = backbone.model()
        value = body(np.ones((1, 4), np.float32))
        async with worker_running(settings):
            await there.upload(name, onnx_models.linear())
            await there.send(name, value, ce_id="before", partition=0)
            await there.outcomes(name, 1)
        await there.send(name, value, ce_id="between", partition=0)
        async with worker_running(settings.model_copy(update={"incarnation": "second"})):
            outcomes = await there.outcomes(name, 2)
        assert [outcomes[0, offset].request_id for offset in range(2)] == ["before", "between"]


async def test_a_receipt_can_be_recomputed_from_the_log(worker, backbone):
    name, model = backbone.model(), onnx_models.linear()
    values = [body(np.full((1 + index % 3, 4), index, np.float32)) for index in range(12)]
    at = [await worker.send(name, value, ce_id=f"c{index}") for index, value in enumerate(values)]
    await worker.upload(name, model)  # all are queued by now: batches of several
    receipts = await worker.outcomes(name, len(values))
    digests = {place: hashlib.sha256(value).hexdigest() for place, value in zip(at, values, strict=True)}
    batches = {}
    for place, receipt in receipts.items():
        assert receipt.input_sha256 == digests[place]
        assert receipt.batch.rows == 1 + int(receipt.request_id.removeprefix("c")) % 3
        assert receipt.artifact_sha256 == hashlib.sha256(model.content).hexdigest()
        [result] = await worker.replies.get([(name, receipt.request_id)])
        assert receipt.output_sha256 == output_digest(result.outputs)
        batches.setdefault(receipt.batch.id, []).append(receipt)
    assert max(map(len, batches.values())) > 1
    for members in batches.values():
        members.sort(key=lambda receipt: receipt.batch.index)
        assert [receipt.batch.index for receipt in members] == list(range(members[0].batch.size))
        assert {m.batch.total_rows for m in members} == {sum(m.batch.rows for m in members)}
        lines = (
            f"{m.request.topic}-{m.request.partition}-{m.request.offset} {m.input_sha256}\n".encode() for m in members
        )
        assert {m.batch.members_sha256 for m in members} == {hashlib.sha256(b"".join(lines)).hexdigest()}


async def test_models_beyond_the_memory_budget_take_turns(backbone):
    models = [onnx_models.linear(seed=seed) for seed in range(3)]
    budget = sum(len(model.content) for model in models[:2])  # room for two of the three
    settings = backbone.settings(WorkerSettings, threads=1, memory_budget_bytes=budget)
    names = [backbone.model() for _ in models]
    x = np.ones((1, 4), np.float32)
    async with rig(settings) as there, worker_running(settings):
        for name, model in zip(names, models, strict=True):
            await there.upload(name, model)
        for turn in range(2):
            for name, model in zip(names, models, strict=True):
                await there.send(name, body(x), ce_id=f"turn-{turn}")
                result = await there.result(name, f"turn-{turn}")
                expected = ort.InferenceSession(model.content).run(None, {"x": x})[0]
                assert to_numpy(result.outputs[0]).tobytes() == expected.tobytes()
