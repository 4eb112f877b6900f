"""Back-tests on real Kafka and Redis: recorded requests on two versions, and the verdict on one of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import numpy as np
import onnx
import orjson
import pytest
from onnx import numpy_helper

from services.audit import kafka_source
from services.audit.records import Selection
from services.audit.replay import runs
from services.audit.replay.backtest import Match, backtest
from services.audit.replay.contenders import contender
from services.audit.replay.feedback import feedback
from services.worker.settings import WorkerSettings
from shared.artifacts import ArtifactStore
from shared.codec import cloud_event_headers, encode_event
from shared.errors import UnknownRequest
from shared.events import FeedbackGiven
from shared.topics import FEEDBACK, OUTCOMES
from support import onnx_models
from support.small_stack import small_stack
from support.worker_rig import rig, worker_running

pytestmark = pytest.mark.stack
ROWS = 60


@pytest.fixture
async def there(backbone):
    settings = backbone.settings(WorkerSettings, threads=1)
    async with rig(settings) as found, worker_running(settings):
        yield found


def inputs():
    return np.random.default_rng(5).standard_normal((ROWS, 4)).astype(np.float32)


def body(array):
    tensor = {"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor]})


async def judged(there, candidate, against, since_ms=None):
    settings, registry = there.settings, there.log.registry
    one, other = contender(candidate, registry), contender(against, registry)
    async with kafka_source.open_source(settings) as source, runs.connected(settings) as to_workers:
        match = Match(one, other, Selection(model=other.model, since_ms=since_ms))
        store = ArtifactStore(settings.artifact_store_url)
        return await backtest(source, to_workers, store, match, lambda ids: feedback(settings, other.model, ids))


async def say(there, name, request_id, label):
    event = FeedbackGiven(model=name, request_id=request_id, label=(label,))
    headers = cloud_event_headers(event_type="FeedbackGiven", source="test")
    topic = there.settings.topics.name(FEEDBACK)
    await there._aio.send_and_wait(topic, encode_event(event), key=request_id.encode(), headers=headers)


async def test_a_version_is_judged_on_what_was_asked(there, backbone):
    name, good = backbone.model(), onnx_models.linear()
    for number, x in enumerate(inputs()):
        await there.send(name, body(x[None]), ce_id=f"r{number}", partition=number % 4)
    await there.upload(name, good)
    await there.outcomes(name, ROWS)
    await there.upload(name, onnx_models.linear(seed=9))
    await there.upload(name, onnx_models.gather())
    before = len(await there.read(there.settings.topics.name(OUTCOMES)))

    same = (await judged(there, f"{name}:1/fp32", f"{name}:1")).as_map()
    assert (same["passed"], same["requests"], same["rows"]) == (True, ROWS, ROWS)
    assert same["agreement"]["y"]["all"]["value"] == 1.0
    assert same["latency"]["candidate"]["p50_s"] > 0

    worse = await judged(there, f"{name}:2", f"{name}:1")
    assert "agreement" in worse.problem
    assert len(worse.as_map()["agreement"]["y"]["by_class"]) <= 4

    breaks = await judged(there, f"{name}:3", f"{name}:1")
    assert f"fails on {ROWS} of {ROWS} requests" in breaks.problem

    # The truth is what version 2 says: where there is enough of it, it decides, and not agreement.
    truth = inputs() @ weights(onnx_models.linear(seed=9))
    for number in range(ROWS):
        await say(there, name, f"r{number}", int(truth[number].argmax()))
    better = (await judged(there, f"{name}:2", f"{name}:1")).as_map()
    assert (better["passed"], better["feedback_rows"]) == (True, ROWS)
    accuracy = next(each for each in better["metrics"] if each["metric"] == "accuracy")
    assert accuracy["candidate"]["value"] == 1.0 > accuracy["against"]["value"]
    assert accuracy["gates"]
    assert (await judged(there, f"{name}:1", f"{name}:2")).problem is not None
    with pytest.raises(UnknownRequest):
        await judged(there, f"{name}:1", f"{name}:1", since_ms=2**52)
    assert len(await there.read(there.settings.topics.name(OUTCOMES))) == before


def weights(model):
    return numpy_helper.to_array(onnx.load_from_string(model.content).graph.initializer[0])


def aiaas(stack, *words):
    """The command, on a stack's servers."""
    settings = stack.worker_settings[0]
    environment = {
        "AIAAS_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "AIAAS_REDIS_URL": settings.redis_url,
        "AIAAS_TOPIC_PREFIX": settings.topic_prefix,
        "AIAAS_ARTIFACT_STORE_URL": settings.artifact_store_url,
        "AIAAS_KAFKA_IDEMPOTENCE": str(settings.kafka_idempotence),
        "AIAAS_KAFKA_EXACT_ENDS": str(settings.kafka_exact_ends),
        "AIAAS_DATA_DIR": str(settings.data_dir),
    }
    return asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.cli", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def test_commands_replay_and_promote_only_what_is_no_worse(backbone, tmp_path):
    async with small_stack(backbone, tmp_path) as stack:
        name = backbone.model()
        await stack.serve(name, onnx_models.linear())
        for number, x in enumerate(inputs()):
            await stack.rig.send(name, body(x[None]), ce_id=f"r{number}", partition=number % 4)
        await stack.rig.outcomes(name, ROWS, within_s=60)
        await stack.rig.upload(name, onnx_models.linear(seed=9))
        await stack.rig.upload(name, onnx_models.linear(), variant="same")
        promote = ("--gate", "backtest", "--url", stack.gateway_url)

        replayed, refused, promoted = await asyncio.gather(
            aiaas(stack, "audit", "replay", "--model", name, "--json", "--out", str(tmp_path / "report")),
            aiaas(stack, "models", "promote", name, "2", *promote),
            aiaas(stack, "models", "promote", name, "3", *promote, "--json"),
        )
        nothing, wrong = await asyncio.gather(
            aiaas(stack, "audit", "replay", "--request", "nobody"), aiaas(stack, "audit", "replay")
        )

        found = orjson.loads(replayed.stdout)
        assert (replayed.returncode, found["identical"], found["diffs"]) == (0, ROWS, []), replayed.stderr
        assert {path.name for path in (tmp_path / "report").iterdir()} == {
            "report.html",
            "rows.parquet",
            "summary.json",
        }
        assert refused.returncode == 1
        assert "was not promoted: its loss in agreement of 'y' is" in refused.stderr
        assert (promoted.returncode, orjson.loads(promoted.stdout)["active"]) == (0, 3), promoted.stderr
        assert f"{name}:3/same passes" in promoted.stderr
        assert (nothing.returncode, nothing.stdout.splitlines()[0]) == (2, "Nothing was replayed.")
        assert wrong.returncode == 2
        assert "Say what to replay" in wrong.stderr
