"""Requests that nobody waits for: states, streams, cancels and keys, asked of another gateway than the one that took
them. The worker is a few lines of `support.gateway`; what a real one writes of runs and positions is written here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.gateway.settings import GatewaySettings
from shared.replies import Ran, connect
from shared.results import Result
from support.gateway import Gateway, a_client_that_leaves, echo_signature, json_input, worker, writer
from support.ports import free_port
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
ASYNC = {"prefer": "respond-async"}
SILENT = {"behaviour": "silent", "timeout": 60_000_000}
STREAMS = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(backbone):
    """Two gateways of one platform, a served model and its worker."""
    settings = backbone.settings(
        GatewaySettings, gateway_port=free_port(), request_timeout_s=60, max_event_streams=STREAMS, request_partitions=1
    )
    other = settings.model_copy(update={"instance": f"{settings.instance}-b", "gateway_port": free_port()})
    model = backbone.model()
    async with (
        Gateway(settings) as first,
        Gateway(other) as second,
        writer(settings) as log,
        connect(settings) as redis,
    ):
        await first.ready()
        await second.ready()
        for _ in range(2):
            uploaded = await first.client.post(f"/v2/repository/models/{model}/versions", content=b"model")
            assert uploaded.status_code == 202, uploaded.text
        for version in (1, 2):
            await log.make_ready(model, version, echo_signature("FP32", "INT32"))
        for gateway in (first, second):
            await gateway.until(f"/v2/models/{model}/versions/2", lambda response: response.status_code == 200)
        async with worker(settings, model) as running:
            yield Pair(first, second, settings, model, log, redis, running)


class Pair:
    def __init__(self, first, second, settings, model, log, replies, running):
        self.first = first
        self.second = second
        self.settings = settings
        self.model = model
        self.log = log
        self.replies = replies
        self.worker = running

    async def infer(self, *, on=None, headers=None, path="", client=None, **fields):
        body = {"inputs": [json_input("FP32"), json_input("INT32")], **fields}
        client = client or (on or self.first).client
        return await client.post(f"/v2/models/{self.model}{path}/infer", json=body, headers=headers)

    async def submit(self, **parameters):
        """A request that is accepted on the first gateway; its id."""
        accepted = await self.infer(headers=ASYNC, parameters=parameters or SILENT)
        assert accepted.status_code == 202, accepted.text
        return accepted.json()["id"]

    async def records_of(self, request_id):
        """How often a request is in the log: the worker has seen what was appended after it."""
        assert (await self.infer()).status_code == 200
        return [headers.request_id for headers, _ in self.worker.records].count(request_id)

    def path(self, request_id):
        return f"/v2/models/{self.model}/requests/{request_id}"

    async def state(self, request_id, on=None):
        return (await (on or self.second).client.get(self.path(request_id))).json()

    async def run(self, request_id):
        """What a worker writes before a run; returns what ends it."""
        claim = await self.replies.claimed(self.model, request_id)
        await self.replies.screen(self.model, {request_id: claim}, "w/1#1")
        return Ran(self.model, "w/1#1", (claim.where,))

    async def answer(self, request_id, ran=None):
        result = Result(id=request_id, status="succeeded", model_name=self.model, model_version=1)
        await self.replies.put([result], ran=ran)

    async def at_position(self, request_id, position):
        """A worker says that so many are before this request."""
        claim = await self.replies.claimed(self.model, request_id)
        await self.log.heartbeat(positions={claim.where: claim.offset - position})

    async def has_position(self, request_id, position):
        state = await self.state(request_id)
        assert state["queue_position"] == position, state
        return True


class Stream:
    """The events of a request, read as they come."""

    def __init__(self, response):
        self.response = response
        self._lines = response.aiter_lines()
        self.retry_ms = None

    async def next(self):
        """The next event as `(event, id, data)`, None at the end of the stream."""
        fields = {}
        async with asyncio.timeout(30):
            async for line in self._lines:
                if line.startswith(":"):
                    continue
                if not line and "data" in fields:
                    return fields["event"], fields.get("id"), json.loads(fields["data"])
                name, _, value = line.partition(": ")
                fields[name] = value
                if name == "retry":
                    self.retry_ms = int(value)
        return None

    async def states(self):
        """Names and states of all events until the end, wherever in the queue."""
        seen = []
        while event := await self.next():
            seen.append((event[0], event[2]["state"]))
        return seen


@contextlib.asynccontextmanager
async def streaming(gateway, path, **headers):
    async with gateway.client.stream("GET", f"{path}/events", headers=headers) as response:
        yield Stream(response)


# ------------------------------------------------------------------ states, polled


async def test_a_state_is_told_by_any_gateway(pair):
    request_id = await pair.submit()
    for gateway in (pair.first, pair.second):
        state = await pair.state(request_id, on=gateway)
        assert (state["state"], state["status"], state["result"]) == ("queued", None, None)
    for position in (3, 0):
        await pair.at_position(request_id, position)
        await eventually(lambda position=position: pair.has_position(request_id, position))
    ran = await pair.run(request_id)
    state = await pair.state(request_id)
    assert (state["state"], state["queue_position"], state["status"]) == ("running", None, None)
    await pair.answer(request_id, ran)
    state = await pair.state(request_id)
    assert (state["state"], state["status"], state["queue_position"]) == ("succeeded", "succeeded", None)
    assert state["result"]["model_name"] == pair.model


async def test_a_request_that_ran_into_its_deadline_can_be_asked_for(pair):
    expired = await pair.infer(parameters={"behaviour": "silent", "timeout": 200_000})
    assert expired.status_code == 504
    state = await pair.state(expired.headers["x-request-id"])
    assert (state["state"], state["error"]["code"]) == ("expired", "deadline_exceeded")


async def test_a_request_whose_client_left_can_be_asked_for(pair):
    headers, _ = await a_client_that_leaves(
        pair.first.url,
        lambda client: pair.infer(client=client, id="leaves", parameters=SILENT),
        pair.worker.record_of("leaves"),
    )
    path = pair.path(headers.request_id)
    response = await pair.second.until(path, lambda response: response.status_code == 200)
    assert response.json()["state"] == "queued"


async def test_what_is_forgotten_is_404_and_says_how_long_things_are_kept(pair):
    request_id = await pair.submit(behaviour="echo")
    await pair.second.until(pair.path(request_id), lambda response: response.json()["state"] == "succeeded")
    async with Redis.from_url(pair.settings.redis_url) as redis:
        kept = [f"aiaas:{kind}:{pair.model}:{request_id}" for kind in ("claim", "result")]
        for key in kept:
            assert pair.settings.result_ttl_s - 30 < await redis.ttl(key) <= pair.settings.result_ttl_s
        await redis.delete(*kept)  # as the TTL does
    for path in (pair.path(request_id), f"{pair.path(request_id)}/events", pair.path("nope")):
        response = await pair.second.client.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "unknown_request")
        assert f"over for longer than {pair.settings.result_ttl_s} s" in response.json()["error"]


async def test_asking_keeps_what_waits_from_being_forgotten_and_nothing_else(pair):
    waits, ended = await pair.submit(), await pair.submit(behaviour="echo")
    await pair.second.until(pair.path(ended), lambda response: response.json()["state"] == "succeeded")
    async with Redis.from_url(pair.settings.redis_url) as redis:
        for request_id in (waits, ended):
            await redis.expire(f"aiaas:claim:{pair.model}:{request_id}", 100)
            await pair.state(request_id)
        assert await redis.ttl(f"aiaas:claim:{pair.model}:{waits}") > 100
        assert await redis.ttl(f"aiaas:claim:{pair.model}:{ended}") <= 100


# ------------------------------------------------------------------ states, streamed


async def test_a_stream_tells_each_change_and_ends_with_the_outcome(pair):
    request_id = await pair.submit()
    await pair.at_position(request_id, 2)
    await eventually(lambda: pair.has_position(request_id, 2))
    async with streaming(pair.second, pair.path(request_id)) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.response.headers["cache-control"] == "no-store"
        assert stream.response.headers["x-request-id"] == request_id
        name, identity, data = await stream.next()
        assert (name, identity, data["state"], data["queue_position"]) == ("state", "queued-2", "queued", 2)
        assert stream.retry_ms == 1000
        await pair.at_position(request_id, 0)
        assert (await stream.next())[:2] == ("state", "queued-0")
        ran = await pair.run(request_id)
        assert (await stream.next())[:2] == ("state", "running")
        await pair.answer(request_id, ran)
        name, identity, data = await stream.next()
        assert (name, identity, data) == ("outcome", "succeeded", await pair.state(request_id))
        assert await stream.next() is None


async def test_a_stream_on_the_gateway_that_took_the_request_hears_at_once(pair):
    async with contextlib.AsyncExitStack() as streams:
        with pair.worker.holding():
            request_id = await pair.submit(behaviour="held")
            stream = await streams.enter_async_context(streaming(pair.first, pair.path(request_id)))
            name, _, data = await stream.next()
            assert (name, data["state"]) == ("state", "queued")
        assert await stream.states() == [("outcome", "succeeded")]


async def test_a_stream_of_what_has_ended_is_its_outcome_and_once_is_enough(pair):
    request_id = await pair.submit(behaviour="fail")
    await pair.second.until(pair.path(request_id), lambda response: response.json()["state"] == "failed")
    async with streaming(pair.second, pair.path(request_id)) as stream:
        name, identity, data = await stream.next()
        assert (name, identity, data["error"]["code"]) == ("outcome", "failed", "execution_failed")
        assert await stream.next() is None
    async with streaming(pair.second, pair.path(request_id), **{"last-event-id": "queued"}) as stream:
        assert (await stream.next())[:2] == ("outcome", "failed")
    async with streaming(pair.second, pair.path(request_id), **{"last-event-id": "failed"}) as stream:
        assert stream.response.status_code == 204  # an EventSource stops coming back


async def test_streams_are_bounded_and_free_their_place(pair):
    request_id = await pair.submit()
    async with contextlib.AsyncExitStack() as streams:
        opened = [
            await streams.enter_async_context(streaming(pair.second, pair.path(request_id))) for _ in range(STREAMS)
        ]
        assert [(await stream.next())[0] for stream in opened] == ["state"] * STREAMS
        refused = await pair.second.client.get(f"{pair.path(request_id)}/events")
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"]
    cancelled = await pair.submit()
    await pair.second.client.delete(pair.path(cancelled))

    async def free():
        return (await pair.second.client.get(f"{pair.path(cancelled)}/events")).status_code == 200

    await eventually(free)


async def test_a_stream_has_its_time_and_then_ends_without_an_outcome(pair):
    settings = pair.settings.model_copy(
        update={"instance": f"{pair.settings.instance}-c", "gateway_port": free_port(), "event_stream_s": 0.3}
    )
    request_id = await pair.submit()
    async with Gateway(settings) as gateway:
        await gateway.ready()
        async with streaming(gateway, pair.path(request_id)) as stream:
            states = await stream.states()
    assert {name for name, _ in states} == {"state"}


async def test_a_gateway_that_stops_ends_its_streams_at_once(pair):
    settings = pair.settings.model_copy(update={"instance": f"{pair.settings.instance}-d", "gateway_port": free_port()})
    request_id = await pair.submit()
    async with Gateway(settings) as gateway:
        await gateway.ready()
        async with streaming(gateway, pair.path(request_id)) as stream:
            assert (await stream.next())[0] == "state"
            begun_s = time.monotonic()
            stopping = asyncio.create_task(gateway.stopped())
            name, _, data = await stream.next()
            assert (name, data["code"]) == ("stopping", "stopping")
            assert await stream.next() is None
            await stopping
            assert time.monotonic() - begun_s < settings.drain_timeout_s / 2


# ------------------------------------------------------------------ cancelling


async def test_a_cancel_on_one_gateway_ends_a_stream_and_a_wait_on_the_other(pair):
    request_id = await pair.submit()
    async with streaming(pair.first, pair.path(request_id)) as stream:
        assert (await stream.next())[0] == "state"
        cancelled = await pair.second.client.delete(pair.path(request_id))
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        name, _, data = await stream.next()
        assert (name, data["state"], data["error"]["code"]) == ("outcome", "cancelled", "cancelled")


async def test_running_work_is_cancelled_for_its_caller_at_once(pair):
    request_id = await pair.submit()
    ran = await pair.run(request_id)
    assert (await pair.state(request_id))["state"] == "running"
    assert (await pair.second.client.delete(pair.path(request_id))).json()["state"] == "cancelled"
    await pair.answer(request_id, ran)  # the worker could not stop it in time: the first answer counts
    assert (await pair.state(request_id))["state"] == "cancelled"


# ------------------------------------------------------------------ Prefer


async def test_an_answer_that_comes_while_the_caller_would_wait_is_the_answer(pair):
    with pair.worker.holding():
        fields = {"id": "comes", "parameters": {"behaviour": "held"}}
        asking = asyncio.create_task(pair.infer(headers={"prefer": "respond-async, wait=50"}, **fields))
        await pair.worker.record_of("comes")
        assert not asking.done()
    response = await asking
    assert (response.status_code, response.json()["model_name"]) == (200, pair.model)


async def test_an_answer_that_does_not_come_is_asked_for_later(pair):
    begun_s = time.monotonic()
    response = await pair.infer(headers={"prefer": "wait=1, respond-async"}, parameters=SILENT)
    assert time.monotonic() - begun_s > 0.9
    assert (response.status_code, response.json()["state"]) == (202, "queued")  # and not 504, as at the deadline
    assert response.headers["preference-applied"] == "respond-async, wait=1"
    assert (await pair.state(response.json()["id"]))["state"] == "queued"


async def test_waiting_for_longer_than_the_deadline_ends_with_it(pair):
    parameters = {"behaviour": "silent", "timeout": 300_000}
    response = await pair.infer(headers={"prefer": "respond-async, wait=30"}, parameters=parameters)
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


# ------------------------------------------------------------------ Idempotency-Key


def keyed(key, **more):
    return {"idempotency-key": key, **more}


async def test_a_repeat_has_the_first_answer_and_runs_nothing(pair):
    first = await pair.infer(headers=keyed('"order-1"'))
    assert first.status_code == 200, first.text
    body = json.dumps({"inputs": [json_input("FP32"), json_input("INT32")]}, indent=4)  # as many spaces as it likes
    again = await pair.second.client.post(f"/v2/models/{pair.model}/infer", content=body, headers=keyed("order-1"))
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert pair.worker.answered.count(first.headers["x-request-id"]) == 1
    assert await pair.records_of(first.headers["x-request-id"]) == 1


async def test_a_failure_is_repeated_too(pair):
    for gateway in (pair.first, pair.second):
        failed = await pair.infer(on=gateway, headers=keyed("fails"), parameters={"behaviour": "fail"})
        assert (failed.status_code, failed.json()["code"]) == (500, "execution_failed")
    assert pair.worker.answered.count(failed.headers["x-request-id"]) == 1


async def test_a_key_stands_for_one_request(pair):
    assert (await pair.infer(headers=keyed("one"))).status_code == 200
    for change in (
        {"inputs": [json_input("FP32", rows=1), json_input("INT32", rows=1)]},
        {"path": "/versions/1"},
        {"outputs": [{"name": "FP32"}]},
        {"outputs": [{"name": "FP32", "parameters": {"binary_data": True}}]},
        {"parameters": {"tag": "other"}},
        {"id": "mine"},
    ):
        refused = await pair.infer(on=pair.second, headers=keyed("one"), **change)
        assert (refused.status_code, refused.json()["code"]) == (409, "id_conflict"), change
    assert (await pair.infer(headers=keyed("two"), path="/versions/1")).status_code == 200


async def test_a_repeat_waits_for_what_is_under_way(pair):
    fields = {"id": "under way", "headers": keyed("held"), "parameters": {"behaviour": "held"}}
    with pair.worker.holding():
        first = asyncio.create_task(pair.infer(**fields))
        await pair.worker.record_of("under way")
        second = asyncio.create_task(pair.infer(on=pair.second, **fields))
        # However long it takes the second to come this far, nothing answers either of them.
        assert not (await asyncio.wait([first, second], timeout=0.5))[0]
    responses = await asyncio.gather(first, second)
    assert [response.status_code for response in responses] == [200, 200]
    assert responses[0].json() == responses[1].json()
    assert pair.worker.answered.count(responses[0].headers["x-request-id"]) == 1


async def test_two_at_the_same_moment_on_two_gateways_run_once(pair):
    for number in range(5):
        both = await asyncio.gather(
            *(pair.infer(on=gateway, headers=keyed(f"same-{number}")) for gateway in (pair.first, pair.second))
        )
        assert [response.status_code for response in both] == [200, 200]
        assert both[0].json() == both[1].json()
        assert pair.worker.answered.count(both[0].headers["x-request-id"]) == 1


async def test_different_requests_with_one_key_at_the_same_moment(pair):
    inputs = [json_input("FP32", rows=1), json_input("INT32", rows=1)]
    both = await asyncio.gather(
        pair.infer(headers=keyed("contested")), pair.infer(on=pair.second, headers=keyed("contested"), inputs=inputs)
    )
    assert sorted(response.status_code for response in both) == [200, 409]
    assert pair.worker.answered.count(both[0].headers["x-request-id"]) == 1


async def test_a_repeat_of_an_asynchronous_request_is_202_again(pair):
    headers = keyed("later", **ASYNC)
    accepted = [await pair.infer(id="later", headers=headers, parameters=SILENT)]
    await pair.worker.record_of("later")
    accepted.append(await pair.infer(on=pair.second, id="later", headers=headers, parameters=SILENT))
    assert [response.status_code for response in accepted] == [202, 202]
    assert accepted[0].json() == accepted[1].json()
    request_id = accepted[0].json()["id"]
    assert (await pair.state(request_id))["state"] == "queued"
    await pair.second.client.delete(pair.path(request_id))
    assert (await pair.infer(id="later", headers=headers, parameters=SILENT)).json()["state"] == "cancelled"
    waits = await pair.infer(id="later", headers=keyed("later"), parameters=SILENT)
    assert (waits.status_code, waits.json()["code"]) == (409, "cancelled")
    assert await pair.records_of(request_id) == 1


async def test_a_refused_request_leaves_its_key_free(pair):
    wrong = await pair.infer(headers=keyed("corrected"), inputs=[json_input("FP32")])
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_input")
    assert (await pair.infer(headers=keyed("corrected"))).status_code == 200


async def test_a_key_is_free_again_when_everything_is_forgotten(pair):
    first = await pair.infer(headers=keyed("old"))
    request_id = first.headers["x-request-id"]
    async with Redis.from_url(pair.settings.redis_url) as redis:
        keys = [f"aiaas:{kind}:{pair.model}:{request_id}" for kind in ("once", "claim", "result")]
        bound_s = pair.settings.result_ttl_s + pair.settings.request_timeout_s
        assert pair.settings.result_ttl_s < await redis.ttl(keys[0]) <= bound_s
        await redis.delete(*keys)  # as the TTL does
    inputs = [json_input("FP32", rows=1), json_input("INT32", rows=1)]
    assert (await pair.infer(headers=keyed("old"), inputs=inputs)).status_code == 200
    assert pair.worker.answered.count(request_id) == 2


async def test_a_retry_runs_what_was_reserved_and_never_appended(pair):
    """A gateway died between the two, or Kafka did not acknowledge."""
    first = await pair.infer(headers=keyed("half"))
    request_id = first.headers["x-request-id"]
    async with Redis.from_url(pair.settings.redis_url) as redis:
        await redis.delete(*(f"aiaas:{kind}:{pair.model}:{request_id}" for kind in ("claim", "result")))
    assert (await pair.infer(on=pair.second, headers=keyed("half"))).status_code == 200


async def test_an_answer_that_outlives_its_claim_is_the_answer(pair):
    first = await pair.infer(headers=keyed("edge"))
    request_id = first.headers["x-request-id"]
    async with Redis.from_url(pair.settings.redis_url) as redis:
        await redis.delete(f"aiaas:claim:{pair.model}:{request_id}")
    assert (await pair.infer(on=pair.second, headers=keyed("edge"))).json() == first.json()
    assert (await pair.infer(headers=keyed("edge", **ASYNC))).json()["state"] == "succeeded"
    assert pair.worker.answered.count(request_id) == 1


@pytest.mark.parametrize("key", ["", '""', "a b", '"a', 'a"b', "é".encode(), "x" * 256, '"a", "b"', '"a\\b"'])
async def test_a_bad_key_is_400(pair, key):
    response = await pair.infer(headers=keyed(key))
    assert (response.status_code, response.json()["code"]) == (400, "invalid_input"), response.text
    assert "Idempotency-Key" in response.json()["error"]


async def test_two_key_headers_are_400(pair):
    body = {"inputs": [json_input("FP32"), json_input("INT32")]}
    headers = [("idempotency-key", "a"), ("idempotency-key", "a")]
    response = await pair.first.client.post(f"/v2/models/{pair.model}/infer", json=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_input")


async def test_the_document_describes_all_of_it(pair):
    paths = (await pair.first.client.get("/openapi.json")).json()["paths"]
    infer = paths["/v2/models/{model}/infer"]["post"]
    assert {"Prefer", "Idempotency-Key"} <= {parameter["name"] for parameter in infer["parameters"]}
    requests = "/v2/models/{model}/requests/{request_id}"
    examples = paths[requests]["get"]["responses"]["200"]["content"]["application/json"]["examples"]
    fields = {*await pair.state(await pair.submit())}
    assert all(set(example["value"]) == fields for example in examples.values())
    events = paths[f"{requests}/events"]["get"]["responses"]
    assert "text/event-stream" in events["200"]["content"]
    assert {"200", "204", "401", "404", "503"} == events.keys()
    assert {"200", "401", "404", "409", "503"} == paths[requests]["delete"]["responses"].keys()
