"""Services that fall behind, and a gateway that goes while callers wait: late answers, no wrong ones, none lost."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager

import onnxruntime
import pytest

from shared.tensors import to_numpy
from support import uploads
from support.front_door import body, outputs_of, row
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.chaos]
MODEL, OTHER = uploads.mlp().SerializeToString(), uploads.mlp((8, 12, 4)).SerializeToString()


@contextmanager
def stopped(*children):
    """The processes, stopped; they go on at the end."""
    for child in children:
        child.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for child in children:
            child.signal(signal.SIGCONT)


def workers(stack):
    return stack.child("worker-1"), stack.child("worker-2")


def expected(content, inputs):
    return onnxruntime.InferenceSession(content).run(None, inputs)[0].tobytes()


async def queued(door, model, count):
    """Wait until this many requests are on the model's topic."""
    requests, found = door.log(door.topics.requests(model)), []

    async def look():
        found.extend(await asyncio.to_thread(requests.poll))
        return len(found) >= count

    await eventually(look, what=f"{count} requests of {model} on their topic")


async def test_workers_behind_the_registry_catch_up_before_they_answer(door, stack, backbone):
    name = backbone.model()
    await door.serve(name, MODEL)
    with stopped(*workers(stack)):
        assert await door.upload(name, OTHER) == 2
        await door.through_the_gate(name, 2)
        over_http = asyncio.create_task(door.infer(name, row(1), version=2))
        await door.send(name, body(row(2)), ce_id="straight", model_version="2")
        await queued(door, name, 2)

    answer = await over_http
    assert (answer.status, answer.version) == (200, 2), answer
    assert bytes(answer.outputs[0].data) == expected(OTHER, row(1))
    state = await door.result(name, "straight")
    assert state["state"] == "succeeded", state
    assert state["result"]["model_version"] == "2"
    assert bytes(outputs_of(state["result"])[0].data) == expected(OTHER, row(2))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_results_outlive_the_gateway_that_callers_waited_at(door, stack, backbone, how):
    name, gateway = backbone.model(), stack.child("gateway")
    await door.serve(name, MODEL)
    restarts = gateway.restarts
    with stopped(*workers(stack)):
        ids = [await door.later(name, row(seed)) for seed in range(5)]
        waiting = [asyncio.create_task(door.infer(name, row(seed))) for seed in range(5, 10)]
        await queued(door, name, 10)
        gateway.signal(how)
        if how == signal.SIGKILL:
            await asyncio.wait(waiting)  # nobody answers them any more
    answers = await asyncio.gather(*waiting)
    await eventually(lambda: gateway.restarts > restarts, within_s=40, what="the gateway's successor")
    await gateway.wait_ready()

    for seed, answer in enumerate(answers, start=5):
        if how == signal.SIGTERM:  # it drains: who waits is answered
            assert answer.status == 200, answer
            assert bytes(answer.outputs[0].data) == expected(MODEL, row(seed))
        else:
            assert answer.status is None
    for seed, request_id in enumerate(ids):
        state = await door.result(name, request_id)
        assert state["state"] == "succeeded"
        assert to_numpy(outputs_of(state["result"])[0]).tobytes() == expected(MODEL, row(seed))
    outcomes = door.outcomes()

    async def settled():
        await asyncio.to_thread(outcomes.poll)
        return sum(receipt.model_name == name for receipt in outcomes.accepted.values()) == 10

    await eventually(settled, within_s=20, what="an outcome of all ten")
