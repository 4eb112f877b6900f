"""Triton's tools against the whole stack: exact statistics, load and unload by two workers, and perf_analyzer.

perf_analyzer is a binary that no package ships for every system: point `AIAAS_TEST_PERF_ANALYZER` at one to run that
test (with `LD_LIBRARY_PATH` for what it links to).
"""

from __future__ import annotations

import asyncio
import os
import re

import numpy as np
import pytest
import tritonclient.http as triton

from support import uploads
from support.waiting import eventually

pytestmark = pytest.mark.stack
REQUESTS = 60
ROWS = 3


async def statistics_of(door, model):
    [row] = (await door.http.get(f"/v2/models/{model}/stats")).json()["model_stats"]
    return row


async def counted(door, model, succeeded):
    async def look():
        row = await statistics_of(door, model)
        return row if row["inference_stats"]["success"]["count"] == succeeded else None

    return await eventually(look, within_s=20, what=f"{succeeded} successes of {model}")


async def test_statistics_count_every_request_and_every_run(door, stack, backbone):
    name = backbone.model()
    await door.serve(name, uploads.mlp().SerializeToString())
    assert (await statistics_of(door, name))["execution_count"] == 0

    def ask():
        client = triton.InferenceServerClient(stack.gateway_url.removeprefix("http://"), concurrency=16)
        x = triton.InferInput("x", [ROWS, 8], "FP32")
        x.set_data_from_numpy(np.ones((ROWS, 8), np.float32))
        pending = [client.async_infer(name, [x]) for _ in range(REQUESTS)]
        for request in pending:
            request.get_result(timeout=30)
        client.close()

    await asyncio.to_thread(ask)
    row = await counted(door, name, REQUESTS)
    sizes = {each["batch_size"]: each["compute_infer"]["count"] for each in row["batch_stats"]}
    assert sum(size * runs for size, runs in sizes.items()) == row["inference_count"] == ROWS * REQUESTS
    assert row["execution_count"] == sum(sizes.values())
    assert row["inference_stats"]["fail"] == {"count": 0, "ns": 0}
    assert row["inference_stats"]["compute_infer"]["ns"] > 0


async def test_two_workers_let_go_of_a_model_and_take_it_back(door, backbone):
    name = backbone.model()
    await door.serve(name, uploads.mlp().SerializeToString())
    ones = {"x": np.ones((1, 8), np.float32)}
    assert (await door.infer(name, ones)).status == 200

    unloaded = await door.http.post(f"/v2/repository/models/{name}/unload")
    assert unloaded.status_code == 200, unloaded.text
    assert (await door.infer(name, ones)).code == "not_loaded"
    await eventually(lambda: _held_by(door, name, []), what="a monitor that has heard of it, too")

    loaded = await door.http.post(f"/v2/repository/models/{name}/load")
    assert loaded.status_code == 200, loaded.text
    await eventually(lambda: _held_by(door, name), what="a worker that holds it again")
    assert (await door.infer(name, ones)).status == 200


async def _held_by(door, model, expected=None):
    """The workers that say they hold the model; or whether they are those expected."""
    instances = (await door.http.get(f"{door.monitor_url}/v1/instances")).json()
    found = [i["instance"] for i in instances if i["up"] and any(held["model"] == model for held in i["loaded"])]
    return found if expected is None else found == expected


async def test_perf_analyzer_measures_and_reads_the_statistics(door, stack, backbone):
    program = os.environ.get("AIAAS_TEST_PERF_ANALYZER")
    if not program:
        pytest.skip("AIAAS_TEST_PERF_ANALYZER names no perf_analyzer")
    name = backbone.model()
    await door.serve(name, uploads.mlp().SerializeToString())
    address = stack.gateway_url.removeprefix("http://")
    # Any measurement counts as stable: this is about the protocol, not about the machine.
    options = ("--measurement-interval", "2500", "--stability-percentage", "999", "--concurrency-range", "2:2")
    process = await asyncio.create_subprocess_exec(
        program,
        *("-m", name, "-u", address, "-i", "http", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    told = output.decode()
    assert process.returncode == 0, told
    numbers = {what: int(re.search(rf"{what}: (\d+)", told)[1]) for what in ("Inference count", "Execution count")}
    assert 0 < numbers["Execution count"] <= numbers["Inference count"]
