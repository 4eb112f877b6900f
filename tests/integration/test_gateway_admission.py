"""Admission over real HTTP, Kafka and Redis: quotas over two gateways, backlogs, lanes, compression, broken clients."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
import uuid
import zlib

import httpx
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton

from services.gateway import http_server
from services.gateway.settings import GatewaySettings
from shared import topics
from shared.codec import cloud_event_headers, encode_event
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat
from support.gateway import Gateway, echo_signature, json_input, worker, writer
from support.ports import free_port
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
BODY = {"inputs": [json_input("FP32")]}
PLACES = 4
ALICE, BOB = {"x-api-key": "key-of-alice"}, {"x-api-key": "key-of-bob"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(backbone):
    """A gateway, a served model and its worker; alice has a quota."""
    alice, bob = backbone.model(), backbone.model()  # names that nobody else's quotas have
    settings = backbone.settings(
        GatewaySettings,
        gateway_port=free_port(),
        max_in_flight_per_model=PLACES,
        api_keys=json.dumps({"key-of-alice": alice, "key-of-bob": bob}),
        tenant_quotas=json.dumps({alice: {"requests_per_s": 4, "burst": 8}}),
        stall_timeout_s=1,
        max_body_bytes=1_000_000,
    )
    model = backbone.model()
    async with Gateway(settings) as gateway, writer(settings) as log:
        gateway.client.headers.update(BOB)
        await gateway.ready()
        uploaded = await gateway.client.post(f"/v2/repository/models/{model}/versions", content=b"model")
        assert uploaded.status_code == 202, uploaded.text
        await log.make_ready(model, 1, echo_signature("FP32"))
        await gateway.until(f"/v2/models/{model}", lambda response: response.status_code == 200)
        async with worker(settings, model) as running:
            yield Stack(gateway, settings, model, log, running)


class Stack:
    def __init__(self, gateway, settings, model, log, running):
        self.gateway, self.settings, self.model, self.log, self.worker = gateway, settings, model, log, running
        self.path = f"/v2/models/{model}/infer"

    async def infer(self, *, headers=None, client=None, **fields):
        return await (client or self.gateway.client).post(self.path, json={**BODY, **fields}, headers=headers)

    async def beat(self, **counts):
        """A heartbeat of a worker with these of its counts."""
        heartbeat = Heartbeat(
            instance="busy",
            incarnation="1",
            service="worker",
            machine=MachineClass(isa="test"),
            registry_offset=0,
            interval_s=2,
            **{name: {self.model: count} for name, count in counts.items()},
        )
        await self.log._producer.send_and_wait(
            self.settings.topics.name(topics.WORKERS),
            encode_event(heartbeat),
            key=b"busy",
            headers=cloud_event_headers(event_type="Heartbeat", source="busy"),
        )


def silent(timeout_s):
    return {"behaviour": "silent", "timeout": int(timeout_s * 1e6)}


# ------------------------------------------------------------------ places and lanes


@contextlib.asynccontextmanager
async def flooded(stack):
    """Requests take all places that they may, to the end of the block."""
    with stack.worker.holding():
        ids = [f"flood {uuid.uuid4()}" for _ in range(PLACES)]
        flood = [asyncio.create_task(stack.infer(id=own_id, parameters={"behaviour": "held"})) for own_id in ids]
        for own_id in ids:
            await stack.worker.record_of(own_id)
        yield
    assert {answer.status_code for answer in await asyncio.gather(*flood)} == {200}


async def test_a_flood_of_normal_requests_leaves_high_ones_a_place(stack):
    async with flooded(stack):
        for body in (BODY, BODY | {"parameters": {"priority": 2}}, BODY | {"parameters": {"x": "priority"}}):
            refused = await stack.gateway.client.post(stack.path, json=body)
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await stack.infer(parameters={"priority": 1})).status_code == 200
    assert (await stack.infer()).status_code == 200


async def test_a_refusal_does_not_wait_for_the_body(stack):
    async with flooded(stack):
        reader, writing = await asyncio.open_connection("127.0.0.1", stack.settings.gateway_port)
        writing.write(f"POST {stack.path} HTTP/1.1\r\nhost: x\r\nx-api-key: key-of-bob\r\n".encode())
        writing.write(b"content-length: 900000\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"503"  # not 408, as for a body that was waited for
        writing.close()


async def test_what_would_expire_in_the_queue_is_refused_at_once(stack):
    began_s = time.monotonic()

    def told():
        """Some 60 a second: the last of 5000 in more than a minute."""
        return int(60 * (time.monotonic() - began_s))

    async def refused_soon():
        await stack.beat(lag=5000, answered=told())  # again and again: it is looked at now and then
        response = await stack.infer(parameters={"timeout": 10_000_000})
        return response if response.status_code == 503 else None

    try:
        refused = await eventually(refused_soon, within_s=60)
        assert int(refused.headers["retry-after"]) in range(30, 61)
        assert "what waits" in refused.json()["error"]
        assert (await stack.infer(parameters={"timeout": 500_000_000})).status_code == 200  # it has the time
        assert (await stack.infer(parameters={"timeout": 10_000_000, "priority": 1})).status_code == 200
    finally:
        await stack.beat(lag=0, answered=told())
    await eventually(lambda: answered(stack))


async def answered(stack):
    return (await stack.infer(parameters={"timeout": 10_000_000})).status_code == 200


# ------------------------------------------------------------------ quotas


async def test_two_gateways_let_in_no_more_than_the_quota_and_bob_is_not_touched(stack, backbone):
    other = backbone.settings(
        GatewaySettings,
        **{name: getattr(stack.settings, name) for name in ("topic_prefix", "stall_timeout_s", "artifact_store_url")},
        gateway_port=free_port(),
        api_keys=json.dumps(stack.settings.api_keys),
        tenant_quotas=json.dumps({name: quota.model_dump() for name, quota in stack.settings.tenant_quotas.items()}),
    )
    async with Gateway(other) as second:
        await second.ready()
        began_s, statuses, bobs = time.monotonic(), [], []
        expected = 8 + 4 * 3 - 2 * 2  # in 3 s, but for what each gateway may have leased and not used

        def goes_on():
            """For 3 s; on a machine that is too busy to ask so often, until the expected ones were let in."""
            took_s = time.monotonic() - began_s
            assert took_s < 20, f"{statuses.count(200)} of {expected} were let in"
            return took_s < 3 or statuses.count(200) < expected

        async def flood(gateway):
            async with httpx.AsyncClient(base_url=gateway.url, headers=ALICE) as client:
                while goes_on():
                    response = await stack.infer(client=client)
                    statuses.append(response.status_code)
                    if response.status_code == 429:
                        assert response.json()["code"] == "quota_exceeded"
                        assert int(response.headers["retry-after"]) >= 1
                        await asyncio.sleep(0.02)

        async def quiet(gateway):
            async with httpx.AsyncClient(base_url=gateway.url, headers=BOB) as client:
                while goes_on():
                    bobs.append((await stack.infer(client=client)).status_code)
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(flood(one) for one in (stack.gateway, second)), quiet(stack.gateway), quiet(second))
        took_s = time.monotonic() - began_s
    let_in = statuses.count(200)
    assert set(statuses) == {200, 429}
    assert let_in <= 8 + 4 * took_s
    assert let_in >= expected
    assert set(bobs) == {200}


# ------------------------------------------------------------------ compression


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
async def test_triton_client_compresses_both_ways(stack, algorithm, binary):
    rows = np.arange(6000, dtype=np.float32).reshape(2000, 3)

    def ask():
        client = triton.InferenceServerClient(stack.gateway.url.removeprefix("http://"))
        given = triton.InferInput("FP32", [2000, 3], "FP32")
        given.set_data_from_numpy(rows, binary_data=binary)
        result = client.infer(
            stack.model,
            [given],
            outputs=[triton.InferRequestedOutput("FP32", binary_data=binary)],
            headers=dict(BOB),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        client.close()
        return result

    assert np.array_equal((await asyncio.to_thread(ask)).as_numpy("FP32"), rows)


async def test_answers_are_compressed_for_who_asks(stack):
    body = json.dumps({"inputs": [json_input("FP32", rows=1000)]}).encode()
    plain = await stack.gateway.client.post(stack.path, content=body, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    compressed = await stack.gateway.client.post(stack.path, content=body, headers={"accept-encoding": "gzip;q=0.3"})
    assert (compressed.headers["content-encoding"], compressed.headers["vary"]) == ("gzip", "accept-encoding")
    assert int(compressed.headers["content-length"]) < len(plain.content) / 4
    assert compressed.json()["outputs"] == plain.json()["outputs"]


async def test_compressed_bodies_that_are_refused(stack):
    async def post(content, encoding):
        return await stack.gateway.client.post(stack.path, content=content, headers={"content-encoding": encoding})

    bomb = await post(gzip.compress(b" " * 50_000_000, 9), "gzip")
    assert (bomb.status_code, bomb.json()["code"]) == (413, "too_large")
    for content, encoding, status, code in [
        (b"x", "br", 415, "unsupported_encoding"),
        (b"{}", "gzip", 400, "invalid_input"),
        (zlib.compress(b"{}")[:-1], "deflate", 400, "invalid_input"),
    ]:
        response = await post(content, encoding)
        assert (response.status_code, response.json()["code"]) == (status, code)
    upload = await stack.gateway.client.post(
        f"/v2/repository/models/{stack.model}/versions",
        content=gzip.compress(b"model"),
        headers={"content-encoding": "gzip"},
    )
    assert (upload.status_code, upload.json()["code"]) == (415, "unsupported_encoding")


# ------------------------------------------------------------------ slow and broken clients


async def talk(stack, *said, then=b""):
    """What the gateway says to these bytes, until it closes the connection."""
    reader, writing = await asyncio.open_connection("127.0.0.1", stack.settings.gateway_port)
    for piece in said:
        writing.write(piece)
        await asyncio.sleep(0.05)
    if then is None:
        writing.write_eof()
    try:
        async with asyncio.timeout(15):
            heard = b""
            while piece := await reader.read(65536):
                heard += piece
            return heard
    except ConnectionError:
        return b"reset"
    finally:
        writing.close()


def head(stack, *lines, method="POST", path=None):
    return "\r\n".join(
        [f"{method} {path or stack.path} HTTP/1.1", "host: x", "x-api-key: key-of-bob", *lines, "", ""]
    ).encode()


async def test_a_body_that_stalls_is_told_and_closed(stack, monkeypatch):
    monkeypatch.setattr(http_server, "_HEAD_TIMEOUT_S", 1.0)
    heard = await talk(stack, head(stack, "content-length: 500000"), b"{")
    assert heard.startswith(b"HTTP/1.1 408")
    assert await answered(stack)


async def test_broken_requests_end_their_connection_and_nothing_else(stack):
    for said in [
        [b"\x00\xff garbage\r\n\r\n"],
        [b"GET / HTTP/9.9\r\n\r\n"],
        [head(stack, "content-length: x")],
        [head(stack, "content-length: 5", "transfer-encoding: chunked"), b"zz\r\n"],
        [head(stack, "transfer-encoding: chunked"), b"xyz\r\n"],
        [head(stack, "x-huge: " + "x" * 200_000)],
        [head(stack, *(f"x-{number}: 1" for number in range(20_000)))],
        [head(stack, method="GET", path="/v2/health/live") + b"\x00garbage\r\n\r\n"],
    ]:
        heard = await talk(stack, *said)
        assert heard == b"reset" or b" 400 " in heard or b" 431 " in heard or heard == b"", (said[0][:80], heard[:200])
    assert await answered(stack)


async def test_pipelined_requests_are_answered_in_order_until_the_garbage(stack):
    live = head(stack, method="GET", path="/v2/health/live")
    heard = await talk(stack, live * 3 + b"\x00\x00\x00\r\n\r\n")
    assert heard.count(b"HTTP/1.1 200") <= 3
    assert await answered(stack)


async def test_a_client_that_half_closes_leaves_no_place_taken(stack):
    body = json.dumps(BODY | {"parameters": silent(20)}).encode()
    for _ in range(PLACES):
        await talk(stack, head(stack, f"content-length: {len(body)}") + body, then=None)
    await eventually(lambda: answered(stack), within_s=5)


async def test_a_client_that_reads_nothing_is_let_go(stack):
    body = json.dumps({"inputs": [json_input("FP32", rows=60_000)]}).encode()
    connections = []
    for _ in range(PLACES):
        _, writing = await asyncio.open_connection("127.0.0.1", stack.settings.gateway_port, limit=1024)
        writing.write(head(stack, f"content-length: {len(body)}") + body)
        connections.append(writing)
    await eventually(lambda: answered(stack), within_s=10)
    for writing in connections:
        writing.close()


async def test_more_connections_than_allowed_are_refused(backbone):
    settings = backbone.settings(GatewaySettings, gateway_port=free_port(), max_connections=5)
    async with Gateway(settings) as gateway:
        idle = [await asyncio.open_connection("127.0.0.1", settings.gateway_port) for _ in range(8)]
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            refused = await client.get("/v2/health/live")
        assert refused.status_code == 503
        for _, writing in idle:
            writing.close()
        await eventually(lambda: lives(gateway))


async def lives(gateway):
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        return (await client.get("/v2/health/live")).status_code == 200
