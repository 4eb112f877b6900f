"""A 200 MB tensor through an unmodified client and every service, both ways, and what it costs in memory."""

from __future__ import annotations

import asyncio
import hashlib
import time

import numpy as np
import psutil
import pytest
import tritonclient.http as triton

from shared import logs
from shared.topics import DEAD_LETTERS, MAX_RECORD_BYTES
from support import uploads
from support.waiting import eventually

pytestmark = pytest.mark.stack
COLUMNS = 8
ROWS = 6_250_000
MB = 1_000_000
MISSING = "artifact_not_found"
GATEWAY_MB = 120
"""What a gateway may grow by: a fraction of the tensor, which it never holds."""


def ask(url, model, array):
    client = triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=120)
    given = triton.InferInput("x", list(array.shape), "FP32").set_data_from_numpy(array)
    try:
        return client.infer(model, [given], request_id="mine")
    finally:
        client.close()


async def peaks(pids, done):
    """The most resident bytes of each process until `done`."""
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    most = dict.fromkeys(pids, 0)
    while not done.done():
        for name, process in processes.items():
            most[name] = max(most[name], process.memory_info().rss)
        await asyncio.sleep(0.02)
    return most


async def again_by_its_claim_check(door, name, array, claim):
    """The answer is an input now, in JSON, and its own answer stays in the store: nothing large passes HTTP."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [ROWS, COLUMNS]}
    for lie, code in (({}, None), ({"sha256": "0" * 64}, "digest_mismatch"), ({"uri": f"{claim['uri']}0"}, MISSING)):
        body = {"inputs": [{**tensor, "data": claim | lie}], "parameters": {"store_outputs": True}}
        response = await door.http.post(f"/v2/models/{name}/infer", json=body)
        if code is None:
            [output] = response.json()["outputs"]
            assert output["parameters"]["sha256"] == hashlib.sha256(array).hexdigest()
            assert "data" not in output
        else:
            assert (response.status_code, response.json()["code"]) == (400, code)


async def test_200_mb_both_ways_through_an_unmodified_client(door, stack, backbone):
    name = backbone.model()
    await door.serve(name, uploads.elementwise("Neg", shape=("batch", COLUMNS)).SerializeToString())
    array = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    assert array.nbytes == 200 * MB
    pids = {service: stack.child(service).pid for service in ("gateway", "worker-1", "worker-2")}
    begun_s = time.monotonic()
    before = {service: psutil.Process(pid).memory_info().rss for service, pid in pids.items()}

    asking = asyncio.create_task(asyncio.to_thread(ask, stack.gateway_url, name, array))
    most = await peaks(pids, asking)
    result = await asking
    after = {service: psutil.Process(pid).memory_info().rss // MB for service, pid in pids.items()}
    seconds = round(time.monotonic() - begun_s, 1)

    assert result.get_response()["id"] == "mine"
    np.testing.assert_array_equal(result.as_numpy("y"), -array)
    grown_mb = {service: (most[service] - before[service]) // MB for service in pids}
    logs.get().info(
        "resident MB", before={s: n // MB for s, n in before.items()}, grown=grown_mb, after=after, seconds=seconds
    )
    assert grown_mb["gateway"] < GATEWAY_MB, grown_mb

    outcomes = door.outcomes()

    def receipts():
        outcomes.poll()
        return [found[0] for (model, _), found in outcomes.by_id.items() if model == name]

    [receipt] = await eventually(receipts, what="the receipt")
    assert receipt.output_sha256 == hashlib.sha256(-array).hexdigest()
    state = await door.state(name, receipt.request_id)
    [output] = state["result"]["outputs"]
    assert (output["parameters"]["byte_size"], "data" in output) == (array.nbytes, False)
    await again_by_its_claim_check(door, name, array, output["parameters"])
    for topic in (door.topics.requests(name), door.topics.name(DEAD_LETTERS)):
        assert all(len(record.value() or b"") < MAX_RECORD_BYTES for record in door.log(topic).poll())
