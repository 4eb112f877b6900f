"""Asynchronous requests through every service: a key's one run in the log, and a stream that a real worker feeds."""

from __future__ import annotations

import asyncio

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

    outcomes = door.outcomes()

    def receipts():
        outcomes.poll()
        return outcomes.by_id.get((name, request_id))

    appended = await eventually(receipts)
    again = await door.http.post(f"/v2/models/{name}/infer", **ask)
    assert again.content == responses[0].content
    [ran] = [receipt for receipt in appended if receipt.batch is not None]
    assert {receipt.duplicate_of for receipt in appended if receipt is not ran} <= {ran.request}
    assert len(receipts()) == len(appended), "a repeat that comes later is not even appended"


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
