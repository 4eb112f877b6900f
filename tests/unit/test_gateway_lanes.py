"""Both ways through the gateway say the same: each request is asked in the express lane, and in forms that are unusual.

Status, headers and body, the record, the line of log and the counts are compared, whatever comes of the request.
"""

from __future__ import annotations

import asyncio
import json

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from structlog.testing import capture_logs

from shared.artifacts import ArtifactStore
from shared.tensors import Tensor
from support.lone_gateway import LoneGateway, body, chunked, post, silent
from support.waiting import eventually

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
KEYS = {"api_keys": '{"key-of-alice": "alice", "key-of-bob": "bob"}'}
ALICE, BOB = "x-api-key: key-of-alice", "authorization: Bearer key-of-bob"
ELSEWHERE = {"uri": "file:///etc/passwd", "sha256": "ab" * 32, "byte_size": 12}


def binary(*, size=12, **fields):
    """A binary request, and the header that says so."""
    given = {"name": "FP32", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": size}}
    head = orjson.dumps({"inputs": [given], **fields})
    return head + bytes(12), f"inference-header-content-length: {len(head)}"


BINARY, WRONG_SIZE, ALL_BINARY = binary(), binary(size=13), binary(parameters={"binary_data_output": True})


def changed(**fields):
    return orjson.dumps({"inputs": [orjson.loads(body())["inputs"][0] | fields]})


def forms(content, *headers, path="infer", **where):
    """A usual request, and the same asked in ways that are not usual, though all that they say is the same."""
    return [
        post(content, *headers, path=path, **where),
        post(content, *headers, "prefer: wait=1", path=path, **where),
        post(content, *headers, path=f"{path}?x=y", **where),
    ]


async def both(gateway, content, *headers, **where):
    """What came of a request that begins in the express lane, and of the same in two forms that do not."""
    seen = []
    for asked in forms(content, *headers, **where):
        usual, records = len(gateway.usual), len(gateway.log.records)
        counted = gateway.gateway.answered.copy()
        with capture_logs() as lines:
            answer = await gateway.ask(asked)
            await gateway.let_go()
            await eventually(lambda lines=lines: [line for line in lines if line["event"] == "inference"])
        [line] = [line for line in lines if line["event"] == "inference"]
        assert answer.headers["x-request-id"] == line["request_id"]
        appended = gateway.log.records[records:]
        assert [record.id for record in appended] in ([], [answer.id])
        seen.append(
            {
                "answer": answer.told,
                "line": {name: line[name] for name in line if line[name] is not None and name not in PASSING},
                "answered": dict(gateway.gateway.answered - counted),
                "records": [(r.topic, r.value, r.headers.tenant, r.headers.model_version) for r in appended],
                "traces": [(r.headers.traceparent, r.headers.reply_channel) for r in appended],
            }
        )
        assert len(seen) == 1 or len(gateway.usual) == usual + 1
    return seen


PASSING = {"request_id", "duration_ms"}


async def same(gateway, content, *headers, express=True, **where):
    """What came of it, in all forms; `express` is whether the express lane answered."""
    usual = len(gateway.usual)
    first, *others = await both(gateway, content, *headers, **where)
    assert all(other == first for other in others), (first, others)
    assert len(gateway.usual) - usual == 2 + (not express)
    status, told, _, answered = first["answer"]
    return status, told, answered


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("content", "headers", "where"),
    [
        (body(), [], {}),
        (body([1, 2, 3], [4, 5, 6], id="mine", outputs=[{"name": "FP32"}]), [], {}),
        (body(), ["content-type: application/json; charset=utf-8"], {"path": "versions/1/infer"}),
        (body(parameters={"priority": 1}), [f"traceparent: {TRACE}"], {}),
        (body(parameters={"timeout": 5_000_000, "x": "y", "priority": 3}), ["traceparent: nonsense"], {}),
        (body(outputs=[{"name": "FP32", "parameters": {"binary_data": True}}]), [], {}),
        (body(parameters={"binary_data_output": True}), ["content-type: application/octet-stream"], {}),
        (BINARY[0], BINARY[1:], {}),
        (ALL_BINARY[0], ALL_BINARY[1:], {}),
        (body(*[["a", "b", "é\x00"]] * 1000, datatype="BYTES"), [], {"model": "texts"}),
        (body(), ["accept-encoding: gzip, deflate, br"], {}),
        (body(), ["Accept: */*", "User-Agent: x", "Cookie: a", "cookie: b"], {}),
    ],
)
async def test_answers(tmp_path, content, headers, where):
    async with LoneGateway(tmp_path) as gateway:
        status, told, answered = await same(gateway, content, *headers, **where)
        assert status == 200, answered
        in_chunks = await gateway.ask(chunked(content, *headers, **where))
        assert (in_chunks.status, in_chunks.headers, in_chunks.body) == (200, in_chunks.headers | told, answered)


@pytest.mark.parametrize(
    ("content", "headers", "where", "wanted"),
    [
        (b"{", [], {}, (400, "invalid_input")),
        (b"[]", [], {}, (400, "invalid_input")),
        (b'{"inputs": []}', [], {}, (400, "invalid_input")),
        (changed(name="X"), [], {}, (400, "invalid_input")),
        (changed(shape=[1, 4]), [], {}, (400, "invalid_input")),
        (changed(shape=[3]), [], {}, (400, "invalid_input")),
        (changed(datatype="FP64"), [], {}, (400, "invalid_input")),
        (changed(data=["x"] * 3), [], {}, (400, "invalid_input")),
        (changed(data=ELSEWHERE), [], {}, (400, "invalid_input")),
        (body(outputs=[{"name": "X"}]), [], {}, (400, "invalid_input")),
        (body(outputs=[{"name": "FP32"}] * 2), [], {}, (400, "invalid_input")),
        (body(id=7), [], {}, (400, "invalid_input")),
        (body(parameters={"timeout": -1}), [], {}, (400, "invalid_input")),
        (body(parameters={"timeout": "soon"}), [], {}, (400, "invalid_input")),
        (body(), ["content-type: text/plain"], {}, (400, "invalid_input")),
        (body(), ["content-type: application/msgpack"], {}, (400, "invalid_input")),
        (body(), ["inference-header-content-length: x"], {}, (400, "invalid_input")),
        (body(), ["inference-header-content-length: 0"], {}, (400, "invalid_input")),
        (body(), ["inference-header-content-length: 9999"], {}, (400, "invalid_input")),
        (WRONG_SIZE[0], WRONG_SIZE[1:], {}, (400, "invalid_input")),
        (BINARY[0] + b"!", BINARY[1:], {}, (400, "invalid_input")),
        (body(), [], {"path": "versions/7/infer"}, (404, "unknown_version")),
        (body(), [], {"path": "versions/0/infer"}, (404, "unknown_version")),
        (body(), [], {"model": "young"}, (503, "not_ready")),
    ],
)
async def test_what_is_wrong_with_a_request(tmp_path, content, headers, where, wanted):
    async with LoneGateway(tmp_path) as gateway:
        status, _, answered = await same(gateway, content, *headers, **where)
        assert not gateway.log.records
    assert (status, orjson.loads(answered)["code"]) == wanted


async def test_what_goes_back_to_the_usual_way(tmp_path):
    """Where more is asked than the express lane has, it begins again there: nothing is spent or appended twice."""
    quota = json.dumps({"alice": {"requests_per_s": 0.001, "burst": 4}})
    async with LoneGateway(tmp_path, **KEYS, tenant_quotas=quota, claim_bytes=20) as gateway:
        unknown = await same(gateway, body(), BOB, model="nobody", express=False)
        assert (unknown[0], orjson.loads(unknown[2])["code"]) == (404, "unknown_model")
        large = await same(gateway, body([1, 2, 3], [4, 5, 6]), BOB, express=False)
        assert large[0] == 200
        assert (await same(gateway, body(), ALICE, express=False))[0] == 200
        assert (await gateway.ask(post(body(), ALICE))).status == 200
        over = await same(gateway, body(), ALICE, express=False)
        assert (over[0], orjson.loads(over[2])["code"]) == (429, "quota_exceeded")


async def test_keys(tmp_path):
    async with LoneGateway(tmp_path, **KEYS) as gateway:
        for headers in ([], ["x-api-key: wrong"], ["authorization: Basic key-of-alice"], [ALICE, ALICE]):
            status, told, answered = await same(gateway, body(), *headers)
            assert (status, orjson.loads(answered)["code"]) == (401, "unauthorized")
            assert told["www-authenticate"] == "Bearer"
        for headers in ([ALICE], [BOB], ["Authorization: bearer key-of-bob"]):
            assert (await same(gateway, body(), *headers))[0] == 200


async def test_bodies_beyond_the_configured_bound(tmp_path):
    content = body(parameters={"note": "n" * 1000})
    async with LoneGateway(tmp_path, max_body_bytes=len(content) - 1) as gateway:
        status, _, answered = await same(gateway, content, express=False)
        assert (status, orjson.loads(answered)["code"]) == (413, "too_large")
        assert (await same(gateway, body()))[0] == 200


async def test_bytes_of_bodies(tmp_path):
    async with LoneGateway(tmp_path, max_bodies_bytes=50) as gateway:
        status, told, answered = await same(gateway, body())
    assert (status, orjson.loads(answered)["code"], told["retry-after"]) == (503, "overloaded", "1")


# ------------------------------------------------------------------ outcomes


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"status": "failed", "error": {"code": "execution_failed", "message": "it raised"}}, 500, "execution_failed"),
        ({"status": "failed", "error": {"code": "unheard of", "message": "é"}}, 500, "unheard of"),
        ({"status": "failed", "error": None}, 500, "internal"),
        ({"status": "failed", "error": {"code": "invalid_input"}}, 400, "invalid_input"),
        ({"status": "failed", "error": {"code": "store_unavailable", "message": "x"}}, 503, "store_unavailable"),
        ({"status": "cancelled", "error": None}, 409, "cancelled"),
        ({"status": "expired", "error": None}, 504, "deadline_exceeded"),
    ],
)
async def test_failures(tmp_path, fields, status, code):
    async with LoneGateway(tmp_path) as gateway:
        gateway.answer_with["fail"] = {"outputs": (), **fields}
        got, _, answered = await same(gateway, body(parameters={"behaviour": "fail"}))
    assert (got, orjson.loads(answered)["code"]) == (status, code)


async def test_the_deadline(tmp_path):
    async with LoneGateway(tmp_path) as gateway:
        status, _, answered = await same(gateway, silent(timeout=20_000))
        assert (status, orjson.loads(answered)["code"]) == (504, "deadline_exceeded")
        assert [gateway.state(record.id) for record in gateway.log.records] == [(True, "expired")] * 3


async def test_outputs_that_json_cannot_carry(tmp_path):
    async with LoneGateway(tmp_path) as gateway:
        gateway.answer_with["bad"] = {"outputs": (Tensor("BYTES", "BYTES", (1,), b"\x01\x00\x00\x00\xff"),)}
        status, _, answered = await same(
            gateway, body(["a", "b", "c"], datatype="BYTES", parameters={"behaviour": "bad"}), model="texts"
        )
    assert (status, orjson.loads(answered)["code"]) == (400, "invalid_input")


@pytest.mark.parametrize("data", [b"123", b"", bytes(16)])
async def test_outputs_that_make_no_sense(tmp_path, data):
    """A bug of a worker's costs its own request a 500, and nobody else anything."""
    async with LoneGateway(tmp_path) as gateway:
        gateway.answer_with["bad"] = {"outputs": (Tensor("FP32", "FP32", (1, 3), data),)}
        status, _, answered = await same(gateway, body(parameters={"behaviour": "bad"}))
        assert (status, orjson.loads(answered)["code"]) == (500, "internal")
        assert (await gateway.ask(post(body()))).status == 200


async def test_kafka_away(tmp_path):
    async with LoneGateway(tmp_path) as gateway:
        gateway.log.fails = True
        status, told, answered = await same(gateway, body())
        assert (status, orjson.loads(answered)["code"], told["retry-after"]) == (503, "log_unavailable", "1")
        gateway.log.fails = False
        assert (await gateway.ask(post(body()))).status == 200


async def test_redis_away(tmp_path):
    async with LoneGateway(tmp_path) as gateway:
        gateway.replies.down = True
        await eventually(lambda: not gateway.waiter.healthy)
        status, _, answered = await same(gateway, body())
        assert (status, orjson.loads(answered)["code"]) == (503, "replies_unavailable")
        assert not gateway.log.records


async def test_redis_away_at_the_deadline(tmp_path):
    async with LoneGateway(tmp_path) as gateway:
        gateway.log.acknowledges = False  # until then nobody offers that it has expired
        asking = asyncio.create_task(gateway.ask(post(silent(timeout=200_000))))
        record = await gateway.record()
        gateway.replies.down = True
        gateway.log.acknowledge(record)
        answer = await asking
        assert (answer.status, answer.json["code"]) == (503, "replies_unavailable")
        await gateway.let_go()


async def test_a_bug_is_a_500(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a bug")

    async with LoneGateway(tmp_path) as gateway:
        monkeypatch.setattr("services.gateway.infer.prepare", fail)
        status, _, answered = await same(gateway, body())
        assert (status, orjson.loads(answered)["code"]) == (500, "internal")


# ------------------------------------------------------------------ answers that are made the usual way


@pytest.mark.parametrize(
    ("rows", "accept", "encoding"),
    [
        (1000, "gzip", "gzip"),
        (1000, "deflate;q=0.5, identity;q=0.1", "deflate"),
        (1000, "br", None),
        (1000, "identity", None),
        (1, "gzip", None),
        (1, "identity;q=0, gzip", "gzip"),
        (1, "Identity;q=0, GZIP", "gzip"),
        (1, "*;q=0, deflate", "deflate"),
        (1, "identity;q=0, br", None),
    ],
)
async def test_compressed_answers(tmp_path, rows, accept, encoding):
    async with LoneGateway(tmp_path) as gateway:
        first, *others = await both(gateway, body(*[[0, 0, 0]] * rows), f"accept-encoding: {accept}")
    assert others == [first, first]
    assert first["answer"][0] == 200
    assert first["answer"][1].get("content-encoding") == encoding


async def stored(gateway, content):
    async def pieces():
        yield content

    artifact = await ArtifactStore(gateway.store_url).put_stream(pieces(), limit_bytes=len(content))
    return Tensor("FP32", "FP32", (len(content) // 12, 3), b"", artifact)


@pytest.mark.parametrize(
    "parameters", [{}, {"binary_data_output": True}, {"store_outputs": True}, {"priority": 1}], ids=str
)
async def test_outputs_from_the_store(tmp_path, parameters):
    content = np.arange(3000, dtype=np.float32).tobytes()
    async with LoneGateway(tmp_path) as gateway:
        gateway.answer_with["stored"] = {"outputs": (await stored(gateway, content),)}
        asked = body(parameters={"behaviour": "stored", **parameters}, id="mine")
        status, headers, answered = await same(gateway, asked, f"traceparent: {TRACE}", express=False)
        assert status == 200
        if "binary_data_output" in parameters:
            assert answered[int(headers["inference-header-content-length"]) :] == content
        elif "store_outputs" not in parameters:
            assert orjson.loads(answered)["outputs"][0]["data"] == list(range(3000))


async def test_outputs_that_the_store_has_lost(tmp_path):
    async with LoneGateway(tmp_path) as gateway:
        lost = await stored(gateway, bytes(1200))
        gateway.answer_with["stored"] = {"outputs": (lost,)}
        for path in (tmp_path / "store").rglob("*"):
            if path.is_file():
                path.unlink()
        status, _, answered = await same(gateway, body(parameters={"behaviour": "stored"}), express=False)
        assert (status, orjson.loads(answered)["code"]) == (500, "artifact_not_found")


@pytest.mark.parametrize("binary_data", [True, False])
async def test_an_unmodified_triton_client(tmp_path, binary_data):
    rows = np.array([[1, 2, 3], [4, 5, 6]], np.float32)

    def ask(gateway):
        client = triton.InferenceServerClient(f"127.0.0.1:{gateway.settings.gateway_port}")
        given = triton.InferInput("FP32", [2, 3], "FP32").set_data_from_numpy(rows, binary_data=binary_data)
        wanted = triton.InferRequestedOutput("FP32", binary_data=binary_data)
        try:
            return client.infer("m", [given], outputs=[wanted], request_id="mine")
        finally:
            client.close()

    async with LoneGateway(tmp_path) as gateway:
        result = await asyncio.to_thread(ask, gateway)
        assert not gateway.usual  # it is what the express lane is for
        np.testing.assert_array_equal(result.as_numpy("FP32"), rows)
        assert result.get_response()["id"] == "mine"
        await gateway.let_go()
