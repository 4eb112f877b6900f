"""Asynchronous requests through every service: a key's one run in the log, and a stream that a real worker feeds."""

from __future__ import annotations

import asyncio
import os
import sys

import numpy as np
import orjson
import pytest

from support import uploads
from support.front_door import body, row
from support.waiting import eventually

pytestmark = pytest.mark.stack
SENDERS = 16


async def test_many_with_one_key_at_the_same_moment_run_once_and_all_have_the_answer(door, backbone):
    name = backbone.model()
    await door.serve(name, uploads.mlp().SerializeToString())
    ask = {"content": body(row(0)), "headers": {"idempotency-key": '"the same"'}}
    responses = await asyncio.gather(*(door.http.post(f"/v2/models/{name}/infer", **ask) for _ in range(SENDERS)))
    assert [response.status_code for response in responses] == [200] * SENDERS, responses[0].text
    assert len({response.content for response in responses}) == 1
    [request_id] = {response.headers["x-request-id"] for response in responses}

    outcomes, requests = door.outcomes(), door.log(door.topics.requests(name))
    appended = await asyncio.to_thread(requests.poll)

    def receipts():
        outcomes.poll()
        found = outcomes.by_id.get((name, request_id), [])
        return found if len(found) == len(appended) else None

    found = await eventually(receipts, what="an outcome of every record")
    [ran] = [receipt for receipt in found if receipt.batch is not None]
    assert {receipt.duplicate_of for receipt in found if receipt is not ran} <= {ran.request}
    again = await door.http.post(f"/v2/models/{name}/infer", **ask)
    assert again.content == responses[0].content
    assert await asyncio.to_thread(requests.poll) == [], "a repeat that comes later is not even appended"


async def test_a_stream_tells_of_a_request_until_its_outcome(door, backbone):
    name = backbone.model()
    await door.serve(name, uploads.mlp().SerializeToString())
    request_id = await door.later(name, row(1))
    async with door.http.stream("GET", f"/v2/models/{name}/requests/{request_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = (await response.aread()).decode()
    assert text.startswith("retry: ")
    assert text.count("event: outcome\nid: succeeded\ndata: {") == 1
    assert text.endswith("}\n\n")
    assert (await door.state(name, request_id))["state"] == "succeeded"


async def aiaas(stack, *arguments):
    """The command line as its users run it: its exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", *arguments),
        env={**os.environ, "AIAAS_GATEWAY_URL": stack.gateway_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_line_asks_later_follows_and_cancels_too_late(door, stack, backbone):
    name = backbone.model()
    await door.serve(name, uploads.mlp().SerializeToString())
    given = ("--input", f"x={orjson.dumps(row(2)['x'].tolist()).decode()}")
    code, out, err = await aiaas(stack, "infer", name, *given, "--async", "--key", "order 7")
    assert code == 0, err
    request_id = out.split()[0]
    code, out, err = await aiaas(stack, "requests", "follow", name, request_id)
    assert code == 0, err
    assert f"{name} version 1" in out
    code, out, _ = await aiaas(stack, "infer", name, *given, "--async", "--key", "order 7", "--json")
    assert (code, orjson.loads(out)["id"]) == (0, request_id)
    code, _, err = await aiaas(stack, "requests", "cancel", name, request_id)
    assert code == 1
    assert "succeeded already" in err


async def events(door, name, request_id):
    """All events of a request as `(event, data)`, until its stream ends."""
    async with door.http.stream("GET", f"/v2/models/{name}/requests/{request_id}/events") as response:
        told = (await response.aread()).decode().removeprefix("retry: 1000\n").split("\n\n")
    lines = [dict(line.split(": ", 1) for line in event.splitlines()) for event in told if event.startswith("event")]
    return [(fields["event"], orjson.loads(fields["data"])) for fields in lines]


async def test_a_queue_is_seen_to_move(door, backbone):
    """Each run takes a third of a second or more, a worker tells positions every two: the queue is longer than that."""
    name = backbone.model()
    await door.serve(name, uploads.slow().SerializeToString())
    x = {"x": np.ones(1, np.float32)}
    ids = [await door.later(name, x) for _ in range(40)]
    streams = await asyncio.gather(*(events(door, name, request_id) for request_id in ids))
    for stream in streams:
        assert [event for event, _ in stream] == ["state"] * (len(stream) - 1) + ["outcome"]
        states = [data["state"] for _, data in stream]
        assert states == sorted(states), "queued, running, succeeded: in this order, as in the alphabet"
        assert states[-1] == "succeeded"
        positions = [data["queue_position"] for _, data in stream if data["queue_position"] is not None]
        assert positions == sorted(positions, reverse=True)
    seen = [data for stream in streams for _, data in stream]
    assert any(data["state"] == "running" for data in seen)
    assert any((data["queue_position"] or 0) > 0 for data in seen)


async def test_running_work_is_cancelled_for_its_caller_at_once(door, backbone):
    name = backbone.model()
    await door.serve(name, uploads.slow(trips=1_000_000).SerializeToString())
    x = {"x": np.ones(1, np.float32)}
    running = await door.later(name, x)

    async def runs():
        return (await door.state(name, running))["state"] == "running"

    await eventually(runs)
    cancelled = await door.http.delete(f"/v2/models/{name}/requests/{running}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    [(event, data)] = await events(door, name, running)
    assert (event, data["error"]["code"]) == ("outcome", "cancelled")
