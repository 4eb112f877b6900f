"""Requests of two models through two workers that are killed meanwhile, then everything is started anew: replay finds
no answer changed, though a worker is killed during the replay too."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from services.audit import kafka_source
from services.audit.records import Selection
from services.audit.replay import runs
from services.audit.replay.replaying import Asked, replay
from shared.artifacts import ArtifactStore
from support import onnx_models
from support.front_door import body
from support.small_stack import small_stack
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.chaos]
REQUESTS = 200
"""At least: they are sent until the last worker was killed."""
KILLS = 2
PACE_S = 0.01


@pytest.fixture
async def there(backbone, tmp_path):
    async with small_stack(backbone, tmp_path, workers=2) as stack:
        yield stack


def row(number):
    return {"x": np.random.default_rng(number).standard_normal((1 + number % 4, 4)).astype(np.float32)}


async def test_no_answer_changes_whatever_is_killed(there, backbone, tmp_path):  # noqa: C901 - one storm
    names, rng = [backbone.model() for _ in range(2)], random.Random(7)
    for seed, name in enumerate(names):
        await there.serve(name, onnx_models.linear(seed=seed))
    outcomes, killed, sent = there.door.outcomes(), asyncio.Event(), 0

    async def send():
        nonlocal sent
        async with asyncio.TaskGroup() as asking:
            while sent < REQUESTS or not killed.is_set():
                name, inputs = names[sent % 2], row(sent)
                if sent % 3:
                    await there.door.send(name, body(inputs), ce_id=f"{name}-{sent}", partition=sent % 4)
                else:
                    asking.create_task(there.door.infer(name, inputs, timeout=120_000_000))
                sent += 1
                await asyncio.sleep(PACE_S)

    async def have(count, within_s=90):
        async def look():
            await asyncio.to_thread(outcomes.poll)
            return len(outcomes.accepted) >= count

        await eventually(look, within_s=within_s, what=f"{count} outcomes")

    async def kill():
        for index in range(KILLS):
            await have(len(outcomes.accepted) + rng.randrange(10, 40))
            await there.kill_worker(index)
            there.start_worker(index)
        killed.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        group.create_task(kill())
    await have(sent)
    there.gateway.kill()
    for number in range(2):
        await there.kill_worker(number)
        there.start_worker(number)

    begun = asyncio.Event()

    async def kill_once_more():
        await begun.wait()
        await there.kill_worker(0)
        there.start_worker(0)

    settings = there.worker_settings[0]
    async with kafka_source.open_source(settings) as source, runs.connected(settings, rows_per_s=60) as to_workers:
        store, asked = ArtifactStore(settings.artifact_store_url), Asked(Selection(), out=tmp_path / "report")
        killing = asyncio.create_task(kill_once_more())
        found = await replay(source, to_workers, store, asked, lambda *_: begun.set())
        await killing

    assert found.counts["changed"] == 0, found.diffs
    assert found.counts["identical"] + found.counts["not_reproducible"] == sent
    assert set(found.reasons) <= {"batch_incomplete"}
    assert found.counts["identical"] > 0.9 * sent
