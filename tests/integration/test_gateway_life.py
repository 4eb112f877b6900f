"""A gateway's life: keys, waiting for Kafka, Redis away, draining."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest

from services.gateway.settings import GatewaySettings
from shared import kafka, topics
from shared.codec import decode_event
from shared.metric_events import HttpAnswered
from support.gateway import Gateway, a_client_that_leaves, echo_signature, json_input, worker, writer
from support.ports import free_port
from support.waiting import eventually

pytestmark = pytest.mark.stack
BODY = {"inputs": [json_input("FP32")]}


@contextlib.asynccontextmanager
async def served(backbone, **overrides):
    """A gateway with a ready model and its worker: `(gateway, model, worker)`."""
    settings = backbone.settings(GatewaySettings, gateway_port=free_port(), **overrides)
    model = backbone.model()
    headers = {"x-api-key": "key-of-alice"} if "api_keys" in overrides else {}
    async with Gateway(settings) as gateway, writer(settings) as log:
        gateway.client.headers.update(headers)
        await gateway.ready()
        uploaded = await gateway.client.post(f"/v2/repository/models/{model}/versions", content=b"model")
        assert uploaded.status_code == 202
        await log.make_ready(model, 1, echo_signature("FP32"))
        await gateway.until(f"/v2/models/{model}", lambda response: response.status_code == 200)
        async with worker(settings, model) as running:
            yield gateway, model, running


async def under_way(gateway, model, running, body):
    """A request that its worker has seen, and whose caller waits."""
    seen = len(running.records)
    waiting = asyncio.create_task(gateway.client.post(f"/v2/models/{model}/infer", json=body))
    await eventually(lambda: len(running.records) > seen, what="the record")
    return waiting


async def test_keys_are_tenants_and_tenants_are_apart(backbone):
    async with served(backbone, api_keys='{"key-of-alice": "alice", "key-of-bob": "bob"}') as (gateway, model, running):
        alice, bob = {"x-api-key": "key-of-alice"}, {"authorization": "Bearer key-of-bob"}
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            infer = f"/v2/models/{model}/infer"
            for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Basic key-of-alice"}):
                for request in (
                    client.build_request("POST", infer, json=BODY, headers=headers),
                    client.build_request("GET", "/v2", headers=headers),
                    client.build_request("GET", f"/v2/models/{model}", headers=headers),
                    client.build_request("POST", f"/v2/repository/models/{model}/versions", headers=headers),
                ):
                    refused = await client.send(request)
                    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
                    assert refused.headers["www-authenticate"] == "Bearer"
            assert (await client.get("/v2/health/live")).status_code == 200
            assert (await client.get("/v2/health/ready")).status_code == 200

            assert (await client.post(infer, json=BODY | {"id": "of bob"}, headers=bob)).status_code == 200
            assert (await running.record_of("of bob"))[0].tenant == "bob"
            accepted = await client.post(infer, json=BODY, headers=alice | {"prefer": "respond-async"})
            url = accepted.json()["status_url"]
            assert (await client.get(url, headers=bob)).status_code == 404
            assert (await client.delete(url, headers=bob)).status_code == 404
            assert (await client.get(url, headers=alice)).status_code == 200
            assert (await client.get(url)).status_code == 401


async def test_without_kafka_it_is_alive_not_ready_and_stops(backbone):
    settings = backbone.settings(
        GatewaySettings, gateway_port=free_port(), kafka_bootstrap_servers=f"127.0.0.1:{free_port()}"
    )
    async with Gateway(settings) as gateway:
        ready = await gateway.client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "waiting_for": ["kafka"]})
        infer = await gateway.client.post("/v2/models/m/infer", json=BODY)
        assert (infer.status_code, infer.json()["code"], infer.headers["retry-after"]) == (503, "log_unavailable", "1")
        metadata = await gateway.client.get("/v2/models/m")
        assert metadata.status_code == 503


async def test_without_redis_nothing_is_enqueued_and_nobody_waits_long(backbone):
    async with Proxy(backbone.redis_url) as redis, served(backbone, redis_url=redis.url) as (gateway, model, running):
        infer = f"/v2/models/{model}/infer"
        assert (await gateway.client.post(infer, json=BODY)).status_code == 200
        silent = BODY | {"parameters": {"behaviour": "silent", "timeout": 3_000_000}}
        waiting = await under_way(gateway, model, running, silent)
        await redis.cut()
        gone = await gateway.until("/v2/health/ready", lambda response: response.status_code == 503)
        assert gone.json()["waiting_for"] == ["redis"]
        seen = len(running.records)
        refused = await gateway.client.post(infer, json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (503, "replies_unavailable")
        assert len(running.records) == seen
        assert (await gateway.client.get(f"/v2/models/{model}/requests/x")).status_code == 503
        honest = await waiting
        assert (honest.status_code, honest.json()["code"]) == (503, "replies_unavailable")
        assert honest.headers["x-request-id"]
        await redis.mend()
        await gateway.ready()


async def test_a_caller_that_leaves_finds_its_answer_by_its_id(backbone):
    async with served(backbone) as (gateway, model, running):
        for behaviour, state in (("held", "succeeded"), ("silent", "queued")):
            body = BODY | {"id": behaviour, "parameters": {"behaviour": behaviour}}
            with running.holding():
                headers, _ = await a_client_that_leaves(
                    gateway.url,
                    lambda client, body=body: client.post(f"/v2/models/{model}/infer", json=body),
                    running.record_of(behaviour),
                )
            url = f"/v2/models/{model}/requests/{headers.request_id}"
            found = await gateway.until(url, lambda response, state=state: response.json().get("state") == state)
            assert found.status_code == 200


async def test_stopping_lets_callers_have_their_answer(backbone):
    async with served(backbone) as (gateway, model, running):

        async def refused():
            try:
                _, out = await asyncio.open_connection("127.0.0.1", gateway.settings.gateway_port)
            except ConnectionRefusedError:
                return True
            out.close()
            return False

        held = BODY | {"parameters": {"behaviour": "held"}}
        with running.holding():
            waiting = await under_way(gateway, model, running, held)
            stopping = asyncio.create_task(gateway.stopped())
            await eventually(refused, what="the end of new connections")
            assert not waiting.done()
        assert (await waiting).status_code == 200
        await stopping
        with pytest.raises(httpx.ConnectError):
            await gateway.client.get("/v2/health/live")


async def test_stopping_tells_the_rest_after_a_bound(backbone):
    async with served(backbone, drain_timeout_s=0.5) as (gateway, model, running):
        silent = BODY | {"parameters": {"behaviour": "silent"}}
        waiting = await under_way(gateway, model, running, silent)
        await asyncio.wait_for(gateway.stopped(), 10)
        told = await waiting
        assert (told.status_code, told.json()["code"]) == (503, "stopping")
        assert told.headers["x-request-id"]


async def test_a_taken_port_is_told_with_its_variable(backbone):
    settings = backbone.settings(GatewaySettings, gateway_port=free_port())
    async with Gateway(settings):
        with pytest.raises(OSError, match=f"AIAAS_GATEWAY_PORT={settings.gateway_port}"):
            await Gateway(settings)._serve(settings, asyncio.Event())


async def test_answers_are_counted_for_the_monitor(backbone):
    settings = backbone.settings(GatewaySettings, gateway_port=free_port(), metrics_interval_s=0.2)
    async with Gateway(settings) as gateway:
        await gateway.ready()
        assert (await gateway.client.get("/v2/models/nobody")).status_code == 404
        metrics = settings.topics.name(topics.METRICS)
        async with kafka.started(lambda: kafka.consumer(settings, metrics), "metrics") as consumer:
            async with asyncio.timeout(10):
                async for record in consumer:
                    if ("ce_type", b"HttpAnswered") not in record.headers:
                        continue
                    counted = decode_event(HttpAnswered, record.value)
                    if 404 in counted.statuses:
                        break
    assert counted.service == "gateway"


class Proxy:
    """Between the gateway and Redis: `cut` closes every connection and takes no more until `mend`."""

    def __init__(self, target_url):
        address, _, self._db = target_url.removeprefix("redis://").partition("/")
        self._host, _, port = address.partition(":")
        self._target_port = int(port)
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/{self._db}"
        self._tasks = set()

    async def __aenter__(self):
        await self.mend()
        return self

    async def __aexit__(self, *_):
        await self.cut()

    async def mend(self):
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self._port)

    async def cut(self):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _join(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection(self._host, self._target_port)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer), return_exceptions=True)
        finally:
            writer.close()
            far_writer.close()

    async def _pump(self, reader, writer):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.close()
