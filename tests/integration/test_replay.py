"""Replay on real Kafka and Redis: recorded batches run again, and every row gets its verdict."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import onnx
import onnxruntime as ort
import orjson
import pytest
from onnx import numpy_helper
from pyarrow import parquet

from services.audit import archive_source, kafka_source
from services.audit.erase import Erasure, erase
from services.audit.records import Offsets, Selection
from services.audit.replay import runs
from services.audit.replay.replaying import Asked, replay
from services.audit.settings import AuditSettings
from services.audit.store import ArchiveStore
from services.worker.settings import WorkerSettings
from shared.artifacts import ArtifactStore
from shared.codec import cloud_event_headers
from shared.events import ModelPromoted
from shared.oip import BINARY
from shared.topics import OUTCOMES, REPLAYS
from support import onnx_models
from support.archive import archived_up_to
from support.processes import service
from support.served import serving
from support.worker_rig import rig, worker_running

pytestmark = pytest.mark.stack
REQUESTS = 60


def row(number, rows=1):
    return np.random.default_rng(number).standard_normal((rows, 4)).astype(np.float32)


def body(array):
    tensor = {"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor]})


def binary(array):
    tensor = {"name": "x", "datatype": "FP32", "shape": list(array.shape)}
    header = orjson.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": array.nbytes}}]})
    return header + array.tobytes(), str(len(header))


@pytest.fixture
async def there(backbone):
    settings = backbone.settings(WorkerSettings, threads=1)
    async with rig(settings) as found, worker_running(settings):
        yield found


async def replayed(settings, source_of=kafka_source, **asked):
    selection = asked.pop("selection", None) or Selection()
    async with source_of.open_source(settings) as source, runs.connected(settings) as to_workers:
        store = ArtifactStore(settings.artifact_store_url)
        return await replay(source, to_workers, store, Asked(selection, **asked))


async def ask(there, name, count=REQUESTS):
    """Requests of some forms and sizes, one of which can't be answered."""
    at = []
    for number in range(count):
        array = row(number, 1 + number % 3)
        if number % 2:
            value, length = binary(array)
            headers = {"content_type": BINARY, "inference_header_content_length": length}
        else:
            value, headers = body(array), {}
        at.append(await there.send(name, value, ce_id=f"r{number}", partition=number % 4, **headers))
    return at


def stored(settings, artifact_sha256):
    root = Path(urlparse(settings.artifact_store_url).path)
    return root / "sha256" / artifact_sha256[:2] / artifact_sha256[2:]


@asynccontextmanager
async def one_weight_changed(settings, model):
    """The stored artefact with one weight changed: `y[1]` differs where `x[0]` is not 0."""
    path = stored(settings, hashlib.sha256(model.content).hexdigest())
    graph = onnx.load_from_string(model.content)
    weights = numpy_helper.to_array(graph.graph.initializer[0]).copy()
    weights[0, 1] += 1.0
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, graph.graph.initializer[0].name))
    changed = graph.SerializeToString()
    assert len(changed) == len(model.content)
    path.write_bytes(changed)
    try:
        yield changed
    finally:
        path.write_bytes(model.content)


async def test_what_was_recorded_is_given_again_bit_for_bit_and_leaves_no_trace(there, backbone, tmp_path):
    one, other = backbone.model(), backbone.model()
    for name in (one, other):
        await ask(there, name)  # queued before there is a model: batches of several
    await there.upload(one, onnx_models.linear())
    await there.upload(other, onnx_models.linear(seed=1))
    for name in (one, other):
        await there.outcomes(name, REQUESTS)
    await there.upload(one, onnx_models.linear(seed=2))
    await there.log.publish(ModelPromoted(model=one, version=2))  # what answers now is not what answered then
    outcomes = await there.read(there.settings.topics.name(OUTCOMES))

    found = await replayed(there.settings, out=tmp_path)

    assert found.as_map() | {"seconds": 0} == {
        "replayed": 2 * REQUESTS,
        "identical": 2 * REQUESTS,
        "within_tolerance": 0,
        "changed": 0,
        "not_reproducible": 0,
        "not_run": 0,
        "seconds": 0,
        "reasons": {},
        "diffs": [],
    }
    assert found.exit_code == 0
    assert len(await there.read(there.settings.topics.name(OUTCOMES))) == len(outcomes)
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert {each["class"] for each in rows} == {"identical"}
    assert len({each["batch_id"] for each in rows}) < len(rows)
    assert all(each["recorded_sha256"] == each["replayed_sha256"] for each in rows)
    assert f"All {2 * REQUESTS} answers were given again" in (tmp_path / "report.html").read_text()
    assert orjson.loads((tmp_path / "summary.json").read_bytes())["identical"] == 2 * REQUESTS


async def test_one_weight_of_the_stored_artefact_changes_the_rows_that_it_should(there, backbone, tmp_path):
    name, model = backbone.model(), onnx_models.linear()
    arrays = [row(number) * ([0, 1, 1, 1] if number % 3 == 0 else [1, 1, 1, 1]) for number in range(30)]
    arrays = [array.astype(np.float32) for array in arrays]
    for number, array in enumerate(arrays):
        await there.send(name, body(array), ce_id=f"w{number}", partition=number % 4)
    await there.upload(name, model)
    await there.outcomes(name, len(arrays))

    async with one_weight_changed(there.settings, model) as changed:
        old, new = (ort.InferenceSession(content) for content in (model.content, changed))
        affected = {
            f"w{number}"
            for number, array in enumerate(arrays)
            if old.run(None, {"x": array})[0].tobytes() != new.run(None, {"x": array})[0].tobytes()
        }
        unchecked = await replayed(there.settings, digest_check=False, out=tmp_path)
        checked = await replayed(there.settings)

    assert {diff["request_id"] for diff in unchecked.diffs} == affected
    assert 0 < len(affected) < len(arrays)
    assert {diff["class"] for diff in unchecked.diffs} == {"changed"}
    assert "1 of 4 differ" in unchecked.diffs[0]["reason"]
    assert "the stored artefact has digest" in unchecked.diffs[0]["reason"]
    assert unchecked.exit_code == 1
    assert "recorded</th>" in (tmp_path / "report.html").read_text()
    assert checked.reasons == {"digest_mismatch": len(arrays)}
    assert (checked.replayed, checked.exit_code) == (0, 2)
    # What serves was in memory, and did not change; nor does a replay now that the artefact is back.
    assert (await replayed(there.settings)).counts == {"identical": len(arrays)}


async def test_a_tolerance_forgives_what_is_near_while_the_recorded_outputs_are_there(there, backbone):
    name, model = backbone.model(), onnx_models.linear()
    await there.send(name, body(np.ones((1, 4), np.float32)), ce_id="near", partition=0)
    await there.send(name, body(np.full((1, 4), 100, np.float32)), ce_id="far", partition=0)
    await there.upload(name, model)
    await there.outcomes(name, 2)
    async with one_weight_changed(there.settings, model):
        found = await replayed(there.settings, digest_check=False, tolerance=2.0)
        assert {diff["request_id"]: diff["class"] for diff in found.diffs}["near"] == "within_tolerance"
        await there.replies._redis.delete(f"aiaas:result:{name}:near")
        found = await replayed(there.settings, digest_check=False, tolerance=2.0)
    assert "outputs are gone" in {diff["request_id"]: diff["reason"] for diff in found.diffs}["near"]


async def test_one_request_runs_among_its_neighbours_and_is_judged_alone(there, backbone):
    name = backbone.model()
    at = await ask(there, name, 12)
    await there.upload(name, onnx_models.linear())
    await there.outcomes(name, 12)
    topic = there.settings.topics.requests(name)
    one = await replayed(there.settings, selection=Selection(request_ids=frozenset({"r5"})))
    assert one.counts == {"identical": 1}
    partition, first = at[0]
    some = await replayed(there.settings, selection=Selection(offsets=(Offsets(topic, partition, first, first + 2),)))
    assert some.counts == {"identical": 2}
    none = await replayed(there.settings, selection=Selection(model=backbone.model()))
    assert (none.replayed, none.exit_code) == (0, 2)


async def test_what_failed_in_its_run_fails_again_and_what_never_ran_is_no_row(there, backbone):
    name = backbone.model()
    await there.upload(name, onnx_models.gather())
    for index, wanted in enumerate([1, 99]):
        tensor = {"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [wanted]}
        await there.send(name, orjson.dumps({"inputs": [tensor]}), ce_id=f"g{index}", partition=0)
    await there.send(name, b"garbage", partition=0)
    await there.outcomes(name, 3)
    found = await replayed(there.settings)
    assert (found.counts, found.not_run) == ({"identical": 2}, 1)


async def test_a_value_or_an_artefact_that_is_gone_is_named(there, backbone):
    name, model = backbone.model(), onnx_models.linear()
    await ask(there, name, 4)
    await there.upload(name, model)
    outcomes = await there.outcomes(name, 4)
    path = stored(there.settings, next(iter(outcomes.values())).artifact_sha256)
    content = path.read_bytes()
    path.unlink()
    found = await replayed(there.settings)
    assert (found.reasons, found.exit_code) == ({"artifact_not_found": 4}, 2)
    path.write_bytes(content)


async def test_garbage_on_replays_stops_nothing(there, backbone):
    name = backbone.model()
    await there.upload(name, onnx_models.linear())
    await ask(there, name, 4)
    await there.outcomes(name, 4)
    topic = there.settings.topics.name(REPLAYS)
    headers = cloud_event_headers(event_type="ReplayRequested", source="someone")
    for partition in range(4):
        await there._aio.send_and_wait(topic, b"garbage", partition=partition, headers=headers)
    assert (await replayed(there.settings)).counts == {"identical": 4}


async def test_live_requests_go_before_replays(there, backbone):
    """While a long replay runs, live requests are answered, and all of the replay's rows are judged."""
    name = backbone.model()
    await ask(there, name, 40)
    await there.upload(name, onnx_models.linear())
    await there.outcomes(name, 40)
    replaying = asyncio.create_task(replayed(there.settings))
    waited = []
    for number in range(10):
        begun_s = time.monotonic()
        await there.send(name, body(row(number)), ce_id=f"live{number}")
        await there.result(name, f"live{number}", within_s=30)
        waited.append(time.monotonic() - begun_s)
    found = await replaying
    assert found.counts["identical"] >= 40
    assert found.counts["changed"] == 0


@pytest.mark.usefixtures("apache_kafka")
async def test_the_archive_is_enough_and_who_was_erased_is_not_replayed(backbone):
    settings, name = backbone.settings(WorkerSettings, threads=1), backbone.model()
    shared = {"topic_prefix": settings.topic_prefix, "artifact_store_url": settings.artifact_store_url}
    audit = backbone.settings(AuditSettings, audit_interval_s=0.2, **shared)
    async with serving(settings, name) as served:
        with service("audit", audit, None):
            await served.ask(24)
            await archived_up_to(audit, await served.ends())
        for number in range(24):
            await served.rig.replies._redis.delete(f"aiaas:result:{name}:r{number}")
        async with one_weight_changed(settings, onnx_models.linear()):
            changed = await replayed(audit, archive_source, digest_check=False)
        assert set(changed.counts) <= {"changed", "identical"}
        assert "1 of 4 differ" in changed.diffs[0]["reason"]  # the recorded outputs are in the archive
        assert (await replayed(audit, archive_source)).counts == {"identical": 24}
        await erase(ArchiveStore(audit.artifact_store_url), Erasure(name, frozenset({"r7"}), None))
        found = await replayed(audit, archive_source)
        assert found.reasons["request_erased"] >= 1
        assert found.counts["changed"] == 0
