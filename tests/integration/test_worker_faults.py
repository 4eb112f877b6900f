"""What happens to requests when workers die, sleep and come back."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import numpy as np
import orjson
import pytest
from redis import Redis

from services.worker.settings import WorkerSettings
from shared.codec import unpack
from shared.tensors import output_digest
from support import onnx_models
from support.processes import service
from support.waiting import eventually
from support.worker_rig import rig

pytestmark = pytest.mark.stack


def loop_request(trips):
    return orjson.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1], "data": [0]},
                {"name": "trips", "datatype": "INT64", "shape": [1], "data": [trips]},
            ]
        }
    )


def runs_with(redis, name, offset):
    """The runs that have this offset of partition 0 in them, by the poison marker."""
    return {run for run, offsets in redis.hgetall(f"aiaas:running:{name}").items() if offset in unpack(offsets)}


async def test_a_record_that_kills_its_worker_fails_alone_after_three_deaths(backbone, tmp_path):
    settings = backbone.settings(WorkerSettings, threads=1, max_run_s=60)
    name = backbone.model()
    redis = Redis.from_url(settings.redis_url)
    async with rig(settings) as there:
        await there.upload(name, onnx_models.counting_loop())
        for index in range(6):
            # The record at offset 3 runs for ever; the test is what kills the process while it does.
            await there.send(name, loop_request(10**12 if index == 3 else index), ce_id=f"p{index}", partition=0)
        with (tmp_path / "worker.log").open("wb") as log, ExitStack() as stack:
            left: set[bytes] = set()
            for _ in range(3):
                process = stack.enter_context(service("worker", settings, log))
                left = await eventually(
                    lambda before=left: runs_with(redis, name, 3) - before, within_s=30, what="the poison running"
                )
                process.kill()
                process.wait()
            stack.enter_context(service("worker", settings, log))
            outcomes = await there.outcomes(name, 6, within_s=30)
    redis.close()
    assert [outcomes[0, o].status for o in range(6)] == ["succeeded"] * 3 + ["failed"] + ["succeeded"] * 2
    assert outcomes[0, 3].error_code == "worker_crashed"


async def test_killed_and_stopped_workers_leave_exactly_one_outcome_each(backbone, tmp_path):
    shared = backbone.settings(WorkerSettings, threads=1)
    settings = [shared.model_copy(update={"instance": f"{shared.instance}-{index}"}) for index in range(2)]
    name = backbone.model()
    async with rig(shared) as there:
        await there.upload(name, onnx_models.linear())

        async def send(first, count):
            for index in range(first, first + count):
                row = np.random.default_rng(index).standard_normal(4).astype(np.float32)
                tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row.tolist()}
                await there.send(name, orjson.dumps({"inputs": [tensor]}), ce_id=f"k{index}")

        with (tmp_path / "worker.log").open("wb") as log, ExitStack() as stack:
            processes = [stack.enter_context(service("worker", one, log)) for one in settings]
            await send(0, 200)
            settling = await both_at_work(there, name, settings)
            await send(200, 200)
            processes[0].kill()
            await send(400, 100)
            stack.enter_context(service("worker", settings[0], log))
            await there.outcomes(name, 500 + settling, within_s=40)
            await send(500, 100)
            processes[1].send_signal(signal.SIGSTOP)
            await send(600, 100)
            await there.outcomes(
                name, 700 + settling, within_s=40
            )  # the other takes over after the session timeout of 6 s
            processes[1].send_signal(signal.SIGCONT)  # what the zombie still has to say must change nothing
            await send(700, 100)
            outcomes = await there.outcomes(name, 800 + settling, within_s=40)
        assert {receipt.status for receipt in outcomes.values()} == {"succeeded"}
        assert {receipt.request_id for receipt in outcomes.values()} >= {f"k{index}" for index in range(800)}
        assert {receipt.worker.split("/")[0] for receipt in outcomes.values()} == {one.instance for one in settings}
        for receipt in outcomes.values():
            [result] = await there.replies.get([(name, receipt.request_id)])
            assert output_digest(result.outputs) == receipt.output_sha256


async def both_at_work(there, name, settings):
    """Send until every worker has answered something, so that the group has settled; how many requests that took."""
    sent, expected = 0, {one.instance for one in settings}
    row = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}

    async def look():
        nonlocal sent
        await there.send(name, orjson.dumps({"inputs": [row]}))
        sent += 1
        outcomes = await there.outcomes(name, 1)
        return {receipt.worker.split("/")[0] for receipt in outcomes.values()} == expected

    await eventually(look, within_s=40, what="both workers at work")
    return sent
