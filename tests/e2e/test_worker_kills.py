"""A worker that is killed at any moment, with offsets that it had not committed yet: no outcome is lost or changed."""

from __future__ import annotations

import asyncio
import os
import random

import numpy as np
import onnxruntime
import pytest

from shared.tensors import output_digest, to_numpy
from support import onnx_models
from support.front_door import body
from support.small_stack import small_stack
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.chaos]
MODEL = onnx_models.linear()
SEED = int(os.environ.get("AIAAS_TEST_FUZZ_SEED", "20261123"))
REQUESTS = 600
"""At least: they are sent until the last worker was killed."""
KILLS = 4
PACE_S = 0.02


@pytest.fixture
async def there(backbone, tmp_path):
    async with small_stack(backbone, tmp_path, workers=2) as stack:
        yield stack


def row(number):
    return {"x": np.random.default_rng(number).standard_normal((1, 4)).astype(np.float32)}


async def test_kills_at_random_moments_repeat_some_outcomes_and_lose_none(there, backbone, record_property):
    """Commits are lazy, so the next owner takes some again: it finds them answered, and appends what readers skip."""
    name, rng = backbone.model(), random.Random(SEED)
    await there.serve(name, MODEL)
    session = onnxruntime.InferenceSession(MODEL.content)
    outcomes, killed, sending, sent = there.door.outcomes(), asyncio.Event(), asyncio.Event(), 0

    async def send():
        nonlocal sent
        while sent < REQUESTS or not killed.is_set():
            await there.door.send(name, body(row(sent)), ce_id=f"k{sent}", partition=sent % 4)
            sent += 1
            await asyncio.sleep(PACE_S)
        sending.set()

    async def settled(count, within_s):
        async def look():
            await asyncio.to_thread(outcomes.poll)
            assert len(outcomes.accepted) >= count, f"{len(outcomes.accepted)} of {count} outcomes"
            return True

        await eventually(look, within_s=within_s)

    async def kill():
        for index in range(KILLS):
            await settled(len(outcomes.accepted) + rng.randrange(5, 40), within_s=60)
            await asyncio.sleep(rng.random() / 4)  # anywhere between two commits
            await there.kill_worker(index % 2)
            there.start_worker(index % 2)
        killed.set()

    async def read_early():
        """What is accepted while it rages must be what is accepted in the end."""
        early = {}
        while not sending.is_set():
            await asyncio.sleep(0.5)
            early |= {at: receipt.output_sha256 for at, receipt in list(outcomes.accepted.items())}
        return early

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read_early())
        group.create_task(send())
        group.create_task(kill())
    early = reading.result()
    await settled(sent, within_s=90)
    await asyncio.sleep(1)
    again = there.door.outcomes()
    await asyncio.to_thread(again.poll)

    assert len(again.accepted) == sent
    assert {receipt.status for receipt in again.accepted.values()} == {"succeeded"}
    assert {at: again.accepted[at].output_sha256 for at in early} == early
    for number in range(sent):
        [receipt] = again.by_id[name, f"k{number}"]
        [result] = await there.rig.replies.get([(name, f"k{number}")])
        assert output_digest(result.outputs) == receipt.output_sha256
        [expected] = session.run(None, row(number))
        assert np.allclose(to_numpy(result.outputs[0]), expected, rtol=1e-4, atol=1e-5)
    record_property("repeats", again.repeats)
    record_property("reexecuted", sum(receipt.reexecuted for receipt in again.accepted.values()))
