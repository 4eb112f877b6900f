"""Large tensors on the real worker: fetched from the artifact store before a run, put there after it."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest

from services.worker.settings import WorkerSettings
from shared.artifacts import ArtifactStore
from shared.codec import pack
from shared.tensors import from_numpy, output_digest
from shared.topics import DEAD_LETTERS, MAX_RECORD_BYTES
from support import onnx_models
from support.waiting import eventually
from support.worker_rig import rig, worker_running

pytestmark = pytest.mark.stack
COLUMNS = 3
INLINE = 100_000


@pytest.fixture
async def worker(backbone):
    settings = backbone.settings(WorkerSettings, threads=1, claim_bytes=INLINE, store_wait_s=1.0)
    async with rig(settings) as there, worker_running(settings):
        there.artifacts = ArtifactStore(settings.artifact_store_url)
        yield there


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, COLUMNS)).astype(np.float32)


async def stored(worker, array):
    """The claim check of an array that was put into the store."""

    async def chunks():
        yield array.tobytes()

    artifact = await worker.artifacts.put_stream(chunks(), limit_bytes=array.nbytes)
    return {"uri": artifact.uri, "sha256": artifact.sha256, "byte_size": artifact.byte_size}


def path_of(worker, claim):
    root = Path(urlsplit(worker.settings.artifact_store_url).path)
    return root / "sha256" / claim["sha256"][:2] / claim["sha256"][2:]


def body(claim, count, **more):
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [count, COLUMNS], "data": claim}], **more}


@pytest.mark.parametrize(("encode", "content_type"), [(pack, "application/msgpack"), (orjson.dumps, None)])
async def test_a_claim_check_by_kafka_and_a_large_answer(worker, backbone, encode, content_type):
    name, array = backbone.model(), rows(1_000_000)
    await worker.upload(name, onnx_models.identity("FP32", COLUMNS))
    headers = {} if content_type is None else {"content_type": content_type}
    at = await worker.send(name, encode(body(await stored(worker, array), 1_000_000)), ce_id="large", **headers)
    result = await worker.result(name, "large")
    assert result.status == "succeeded", result.error
    [output] = result.outputs
    assert (output.claimed, output.size_bytes, output.shape) == (True, array.nbytes, array.shape)
    assert await worker.artifacts.get_bytes(output.artifact) == array.tobytes()
    assert len(result.encode()) < 2_000
    receipt = (await worker.outcomes(name, 1))[at]
    assert receipt.status == "succeeded"
    assert receipt.output_sha256 == hashlib.sha256(array).hexdigest() == output_digest([from_numpy("y", array)])
    for topic in (worker.settings.topics.requests(name), worker.settings.topics.name(DEAD_LETTERS)):
        assert all(len(record.value) < MAX_RECORD_BYTES for record in await worker.read(topic))


async def test_small_answers_stay_in_redis_unless_they_are_wanted_in_the_store(worker, backbone):
    name, array = backbone.model(), rows(2)
    await worker.upload(name, onnx_models.identity("FP32", COLUMNS))
    claim = await stored(worker, array)
    await worker.send(name, orjson.dumps(body(claim, 2)), ce_id="plain")
    await worker.send(name, orjson.dumps(body(claim, 2, parameters={"store_outputs": True})), ce_id="asked")
    own = {"outputs": [{"name": "y", "parameters": {"store_outputs": True}}]}
    await worker.send(name, orjson.dumps(body(claim, 2, **own)), ce_id="asked-of-one")
    [plain] = (await worker.result(name, "plain")).outputs
    assert (plain.artifact, bytes(plain.data)) == (None, array.tobytes())
    for request_id in ("asked", "asked-of-one"):
        [output] = (await worker.result(name, request_id)).outputs
        assert not output.claimed
        assert bytes(output.data) == array.tobytes()
        assert await worker.artifacts.get_bytes(output.artifact) == array.tobytes()
    assert {r.output_sha256 for r in (await worker.outcomes(name, 3)).values()} == {claim["sha256"]}


def without_file(path):
    path.unlink()


def with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def shortened(path):
    path.write_bytes(b"short")


def untouched(_):
    """Only the claim check is wrong."""


@pytest.mark.parametrize(
    ("damage", "lie", "code"),
    [
        (without_file, {}, "artifact_not_found"),
        (with_zeros, {}, "digest_mismatch"),
        (shortened, {}, "digest_mismatch"),
        (untouched, {"uri": "file:///etc/passwd"}, "invalid_input"),
        (untouched, {"byte_size": 599_999}, "invalid_input"),
        (untouched, {"sha256": "0" * 64}, "digest_mismatch"),
        (untouched, {"byte_size": "600000"}, "invalid_input"),
    ],
)
async def test_what_is_wrong_with_a_claim_check_is_the_outcome_and_the_records_behind_it_flow(
    worker, backbone, damage, lie, code
):
    name, array = backbone.model(), rows(50_000, seed=1)
    await worker.upload(name, onnx_models.identity("FP32", COLUMNS))
    claim = await stored(worker, array)
    damage(path_of(worker, claim))
    claim |= lie
    at = await worker.send(name, orjson.dumps(body(claim, 50_000)), ce_id="wrong", partition=0)
    await worker.send(name, orjson.dumps(body(await stored(worker, rows(2)), 2)), ce_id="right", partition=0)
    result = await worker.result(name, "wrong")
    assert (result.status, result.error["code"]) == ("failed", code)
    assert (await worker.result(name, "right")).status == "succeeded"
    receipt = (await worker.outcomes(name, 2))[at]
    assert (receipt.status, receipt.error_code, receipt.batch) == ("failed", code, None)
    [letter] = await worker.dead_letters(name)
    assert dict(letter.headers)["x-error-code"] == code.encode()


async def test_what_would_not_fit_the_model_is_not_fetched(worker, backbone):
    name = backbone.model()
    await worker.upload(name, onnx_models.identity("FP32", COLUMNS))
    nowhere = {"uri": f"{worker.settings.artifact_store_url}/nowhere", "sha256": "0" * 64, "byte_size": 40}
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 5], "data": nowhere}
    await worker.send(name, orjson.dumps({"inputs": [tensor]}), ce_id="wide")
    assert (await worker.result(name, "wide")).error["code"] == "invalid_input"


async def test_what_is_fetched_is_held_against_its_datatype(worker, backbone):
    name = backbone.model()
    await worker.upload(name, onnx_models.identity("BOOL", COLUMNS))
    claim = await stored(worker, np.full((40_000, COLUMNS), 2, np.uint8))
    tensor = {"name": "x", "datatype": "BOOL", "shape": [40_000, COLUMNS], "data": claim}
    await worker.send(name, orjson.dumps({"inputs": [tensor]}), ce_id="two")
    result = await worker.result(name, "two")
    assert result.error == {"code": "invalid_input", "message": "tensor 'x' has BOOL bytes other than 0 and 1"}


async def test_a_store_that_stays_away_fails_with_its_own_code(worker, backbone):
    name, array = backbone.model(), rows(50_000, seed=2)
    await worker.upload(name, onnx_models.identity("FP32", COLUMNS))
    claim = await stored(worker, array)
    await worker.send(name, orjson.dumps(body(claim, 50_000)), ce_id="first")
    await worker.result(name, "first")  # the model is in memory
    incoming = path_of(worker, claim).parents[2] / "incoming"
    incoming.rmdir()
    incoming.write_bytes(b"a file where a directory belongs")
    at = await worker.send(name, orjson.dumps(body(claim, 50_000)), ce_id="second")
    small = orjson.dumps(body(spelt_out(rows(2)), 2))
    await worker.send(name, small, ce_id="small")
    assert (await worker.result(name, "small")).status == "succeeded"
    result = await worker.result(name, "second")
    assert (result.status, result.error["code"], result.outputs) == ("failed", "store_unavailable", ())
    receipt = (await worker.outcomes(name, 3))[at]
    assert (receipt.status, receipt.error_code, receipt.output_sha256) == ("failed", "store_unavailable", None)
    assert receipt.batch is not None  # it ran


def spelt_out(array):
    """An array spelt out."""
    return array.ravel().tolist()


async def test_large_requests_do_not_hold_up_small_ones(backbone):
    settings = backbone.settings(WorkerSettings, threads=1, claim_bytes=INLINE, max_fetched_bytes=13_000_000)
    async with rig(settings) as there, worker_running(settings):
        there.artifacts = ArtifactStore(settings.artifact_store_url)
        name, array = backbone.model(), rows(1_000_000)
        await there.upload(name, onnx_models.identity("FP32", COLUMNS))
        claim = await stored(there, array)
        value = orjson.dumps(body(claim, 1_000_000))
        # One at a time may be in memory.
        *large, small = await asyncio.gather(
            *(there.send(name, value, ce_id=f"large{n}") for n in range(10)),
            there.send(name, orjson.dumps(body(spelt_out(rows(1)), 1)), ce_id="small"),
        )
        receipts = await there.outcomes(name, 11, within_s=60)
        assert {receipt.status for receipt in receipts.values()} == {"succeeded"}
        assert receipts[small].completed_at < max(receipts[at].completed_at for at in large)
        too_large = {"uri": claim["uri"], "sha256": "0" * 64, "byte_size": 12 * 2_000_000}
        await there.send(name, orjson.dumps(body(too_large, 2_000_000)), ce_id="too-large")
        assert (await there.result(name, "too-large")).error["code"] == "too_large"


async def test_copies_of_replies_carry_claim_checks(backbone):
    settings = backbone.settings(WorkerSettings, threads=1, claim_bytes=INLINE)
    prefix = f"copy-{settings.topic_prefix}"
    settings = settings.model_copy(update={"reply_topic_prefixes": (prefix,)})
    elsewhere_ = settings.model_copy(update={"topic_prefix": prefix})
    async with rig(settings) as there, rig(elsewhere_) as other, worker_running(settings):
        there.artifacts = ArtifactStore(settings.artifact_store_url)
        name, array = backbone.model(), rows(50_000)
        reply_topic = elsewhere_.topics.requests(name)
        await other.ensure(name)
        await there.upload(name, onnx_models.identity("FP32", COLUMNS))
        value = orjson.dumps(body(await stored(there, array), 50_000))
        await there.send(name, value, ce_id="copied", reply_topic=reply_topic)

        async def copy():
            return await there.read(reply_topic)

        [record] = await eventually(copy, what="a copy")
        [output] = orjson.loads(record.value)["outputs"]
        assert "data" not in output
        assert output["parameters"]["sha256"] == hashlib.sha256(array).hexdigest()
