"""The optimizer as processes on real Kafka: uploads become ready or rejected, whoever dies on the way."""

from __future__ import annotations

import asyncio
import json
import signal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from services.optimizer import documents
from services.optimizer.rejections import ADVICE
from services.optimizer.settings import OptimizerSettings
from shared import events as ev
from shared import heartbeat_events, kafka, metric_events, topics
from shared.codec import decode_event, encode_event
from shared.oip import InferenceRequest, encode_request_msgpack
from shared.optimization import DataFile, LoggedRequests, Optimization, Search, Training, WarmStart
from shared.registry import MAX_ATTEMPTS
from shared.requests import RequestHeaders
from shared.tensors import from_numpy
from support import uploads
from support.optimizer_rig import WITHIN_S, Starter, children, heard, optimizer_rig, records_of, runs, type_of
from support.waiting import eventually

pytestmark = pytest.mark.stack


@pytest.fixture
async def rig(backbone, tmp_path):
    # What is left undone for want of time is not what these tests are about.
    settings = backbone.settings(OptimizerSettings, time_budget_s=3600, checkpoint_s=3600, scratch_dir=tmp_path)
    async with optimizer_rig(settings) as rig:
        yield rig


@pytest.fixture
def start(rig, tmp_path):
    """Start an optimizer of some name, as a context that ends with it."""
    return Starter(rig, tmp_path)


async def test_uploads_become_ready(rig, start):
    """Those from before the optimizer started, too; with everything that was measured."""
    await rig.upload("early", uploads.mlp())
    with start() as optimizer:
        early = await rig.ended("early")
        await rig.upload("magika", uploads.magika())
        magika = await rig.ended("magika")
        await heard(rig, "o1")
        beat = await _heartbeat(rig, "o1")
        steps = await _steps(rig, "magika")
        optimizer.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(optimizer.wait, 20) == 0
    assert (early.state, early.attempt) == ("ready", 1)
    assert rig.log.registry.model("early").active == 1
    assert magika.state == "ready"
    assert magika.reason.startswith(f"{magika.chosen}: ")
    fp32 = magika.variants["fp32"]
    assert await rig.store.get_bytes(fp32.artifact) == uploads.magika()
    assert fp32.batch_cap > 1
    assert {spec.batch_axis for spec in (*fp32.signature.inputs, *fp32.signature.outputs)} == {0}
    measured = {**{v: variant.measurements for v, variant in magika.variants.items()}}
    measured |= {rejection.variant: rejection.measurements for rejection in magika.rejections}
    assert measured["int8-weight-only"].top1_agreement > 0.98
    assert (beat.service, beat.machine.providers) == ("optimizer", ("CPUExecutionProvider",))
    assert {"fp32: vet", "fp32: batching", "int8-weight-only: measure", "store"} <= steps


async def test_nothing_stops_it(rig, start):
    """A corpus of hostile files, each with its code, and a good one behind them."""
    corpus = {
        "truncated": (uploads.mlp().SerializeToString()[:-7], "invalid_model"),
        "pickle": (uploads.pickled(), "unsupported_format"),
        "checkpoint": (uploads.zipped("m/data.pkl"), "unsupported_format"),
        "empty": (b"", "unsupported_format"),
        "outside": (uploads.with_outside_initializer(), "external_data"),
        "custom": (uploads.custom_operator(), "operator_domain"),
        "endless": (uploads.endless(), "run_timeout"),
        "bomb": (uploads.bomb(), "out_of_memory"),
    }
    for model, (made, _) in corpus.items():
        await rig.upload(model, made)
    await rig.upload("good", uploads.mlp())
    with start(run_timeout_s=3) as optimizer:
        good = await rig.ended("good")
        assert optimizer.poll() is None
        versions = {model: await rig.ended(model) for model in corpus}
    assert good.state == "ready"
    assert {model: version.code for model, version in versions.items()} == {
        model: code for model, (_, code) in corpus.items()
    }
    for version in versions.values():
        assert version.reason.endswith(f"{ADVICE[version.code]}.")
        assert version.attempt == 1


async def test_the_work_of_a_killed_optimizer_is_finished_by_another(rig, start):
    with start("o1") as first, start("o2") as second:
        await rig.upload("slow", uploads.slow())
        claimed = await rig.becomes("slow", "optimizing")
        owner = first if "-o1/" in claimed.owner else second
        job = await eventually(lambda: children(owner), within_s=WITHIN_S)
        owner.kill()
        await eventually(lambda: not [child for child in job if runs(child)], within_s=WITHIN_S, what="its death")
        finished = await rig.ended("slow")
    assert finished.owner != claimed.owner
    assert (finished.state, finished.attempt) == ("ready", 2)


async def test_a_restarted_optimizer_takes_its_own_work_up_again(rig, start):
    with start() as first:
        await rig.upload("slow", uploads.slow())
        await rig.becomes("slow", "optimizing")
        job = await eventually(lambda: children(first), within_s=WITHIN_S)
        first.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(first.wait, 20) == 0
        assert not [child for child in job if runs(child)]
    assert rig.log.registry.version("slow", 1).state == "optimizing"
    with start():
        finished = await rig.ended("slow")
    assert (finished.state, finished.attempt) == ("ready", 2)


async def test_two_optimizers_share_the_work(rig, start):
    """Both are there before there is any: else the one that is there first may do it all."""
    with start("o1"), start("o2"):
        await heard(rig, "o1", "o2")
        for number in range(6):
            await rig.upload(f"m{number}", uploads.mlp((8, 16 + number, 4)))
        versions = [await rig.ended(f"m{number}") for number in range(6)]
    assert {version.state for version in versions} == {"ready"}
    assert {version.attempt for version in versions} == {1}
    assert len({version.owner for version in versions}) == 2


async def test_an_upload_that_kills_optimizers_is_given_up(rig, start):
    await rig.upload("killer", uploads.mlp())
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = ev.OptimizationClaimed(model="killer", version=1, attempt=attempt, owner=f"gone/{attempt}")
        await rig.log.publish(claim)
    with start():
        version = await rig.ended("killer")
    assert (version.state, version.code, version.attempt) == ("rejected", "optimizer_crashed", MAX_ATTEMPTS + 1)


MANY = ("int8-weight-only", "int4-weight-only", "int8-dynamic", "int8-static")


def followed_steps(facts, number):
    return [fact.step for fact in facts if fact.version == number]


async def killed_at_every_step(rig, start, model, number):
    """Optimizers, each dead as soon as it has told of a step, until the version is done.

    After each of them another one dies when it has done the next step and not told of it. All have one name, so that
    each takes up the work of the last at once. Returns what was finished at each death.
    """
    deaths = [rig.log.registry.version(model, number).steps]
    while True:
        tells = len(deaths) % 2
        with start("o1", dies={"DIES_AFTER" if tells else "DIES_BEFORE": "*"}) as optimizer:
            await eventually(
                lambda: optimizer.poll() is not None or not rig.log.registry.version(model, number).is_open,
                within_s=WITHIN_S,
                what="a step, or the end",
            )
            if not rig.log.registry.version(model, number).is_open:
                return deaths[1:]
            registry = await rig.died(optimizer)
        deaths.append(registry.version(model, number).steps)
        assert len(deaths[-1]) == len(deaths[-2]) + tells


def assert_nothing_was_done_twice(deaths, version, told):
    """What was finished at a death is the same at the end, and no step was told of twice."""
    assert len(told) == len({*told}) == len(version.steps)
    for before in deaths:
        assert {name: version.steps[name] for name in before} == before
    assert version.attempt > 1


@pytest.mark.timeout(900)  # a dozen optimizers, one after the other
async def test_an_upload_is_finished_though_its_optimizers_are_killed_at_every_step(rig, start):
    """Reference, quantization, pruning with its healing, and what is made of it."""
    x, label = blobs(120)
    data = DataFile(artifact=await rig.store_data(x=x, label=label))
    candidates = ("int8-weight-only", "pruned-50", "pruned-50-int8-dynamic")
    await rig.upload("m", uploads.mlp((8, 64, 4)), options=Optimization(data=data, candidates=candidates))
    deaths = await killed_at_every_step(rig, start, "m", 1)
    version = rig.log.registry.version("m", 1)
    assert version.state == "ready", version.reason
    assert_nothing_was_done_twice(deaths, version, followed_steps(await rig.facts(ev.StepFinished), 1))
    assert {*version.variants, *(each.variant for each in version.rejections)} == {"fp32", *candidates}
    assert {"fp32", *candidates} == {*version.steps}


@pytest.mark.timeout(900)  # a dozen optimizers, one after the other
async def test_an_update_is_finished_though_its_optimizers_are_killed_at_every_step(rig, start):
    """Its data from the log, each trial of its search, its training, the comparison."""
    await rig.upload("m", uploads.mlp(), candidates=())
    await kafka.ensure_topics(rig.settings, "m")
    with start("o1"):
        await rig.ended("m")
    await feed(rig, "m", 120)
    training = Training(epochs=20, search=Search(trials=3))
    number = await ask(rig, "m", training, data=LoggedRequests(labels="feedback"), candidates=())
    deaths = await killed_at_every_step(rig, start, "m", number)
    version = rig.log.registry.version("m", number)
    assert version.state == "ready", version.reason
    assert_nothing_was_done_twice(deaths, version, followed_steps(await rig.facts(ev.StepFinished), number))
    assert {"data", *(f"train.trial.{trial}" for trial in range(3)), "train", "fp32", "compare"} == {*version.steps}
    assert version.comparison is not None
    assert any("train.trial.0" in before and "train.trial.2" not in before for before in deaths)
    assert (await chosen(rig, version))["trials"] == 3


async def chosen(rig, version):
    """What an update's training chose by itself."""
    document = documents.decode(await rig.store.get_bytes(version.steps["train"].result))
    return json.loads(document.found.parameters)


async def test_the_same_upload_twice_is_worked_on_once(rig, start):
    """Also by two optimizers that could begin with one each."""
    for upload_id in ("u1", "u2"):
        await rig.upload("m", uploads.mlp(), upload_id, candidates=MANY)
    with start("o1"), start("o2"):
        first, second = [await rig.ended("m", number) for number in (1, 2)]
    assert all(step.reused_from is None for step in first.steps.values())
    assert {step.reused_from.version for step in second.steps.values()} == {1}
    assert {name: step.result for name, step in first.steps.items()} == {
        name: step.result for name, step in second.steps.items()
    }
    assert second.chosen == first.chosen


async def test_a_cancel_ends_the_child(rig, start):
    await rig.upload("slow", uploads.slow())
    with start() as optimizer:
        await rig.becomes("slow", "optimizing")
        job = await eventually(lambda: children(optimizer), within_s=WITHIN_S)
        await rig.log.publish(ev.OptimizationCancelled(model="slow", version=1, reason="a mistake"))
        await eventually(lambda: not [child for child in job if runs(child)], within_s=WITHIN_S, what="its death")
        await rig.upload("next", uploads.mlp())
        assert (await rig.ended("next")).state == "ready"
    version = rig.log.registry.version("slow", 1)
    assert (version.state, version.code, version.reason) == ("rejected", "cancelled", "a mistake")


# --------------------------------------------------------------------------- updates


def blobs(rows, seed=0):
    """Points around four corners, and which corner."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 4, rows)
    corners = np.random.default_rng(9).standard_normal((4, 8)) * 3
    return (corners[label] + random.standard_normal((rows, 8))).astype(np.float32), label


async def feed(rig, model, rows, told=lambda label: label):
    """Requests of one row each, straight into the log, and feedback on each."""
    x, label = blobs(rows)
    async with kafka.started(lambda: kafka.producer(rig.settings), "upstream") as producer:
        for number, (row, right) in enumerate(zip(x, label, strict=True)):
            request = InferenceRequest(inputs=(from_numpy("x", row[None]),))
            about = RequestHeaders(request_id=f"r{number}").to_kafka("upstream")
            topic = rig.settings.topics.requests(model)
            await producer.send(topic, encode_request_msgpack(request), headers=about, partition=number % 2)
            given = ev.FeedbackGiven(model=model, request_id=f"r{number}", label=(int(told(right)),))
            await producer.send(rig.settings.topics.name(topics.FEEDBACK), encode_event(given))
        await producer.send(rig.settings.topics.requests(model), b"not a request", partition=0)
        await producer.flush()


async def ask(rig, model, training, upload_id="update", **options):
    options = {"candidates": ("int8-weight-only",), "seed": 5, **options}
    event = ev.UpdateRequested(
        model=model, upload_id=upload_id, parent=1, training=training, optimization=Optimization(**options)
    )
    registry = await rig.log.publish(event)
    return registry.model(model).uploads[upload_id]


async def test_an_update_learns_from_feedback_in_the_log_and_may_be_promoted(rig, start):
    await rig.upload("m", uploads.mlp())
    await kafka.ensure_topics(rig.settings, "m")
    with start():
        await rig.ended("m")
        await feed(rig, "m", 200)
        training = Training(learning_rate=0.02, epochs=30)
        number = await ask(rig, "m", training, data=LoggedRequests(labels="feedback"))
        version = await rig.ended("m", number)
        steps = await _steps(rig, "m")
    assert version.state == "ready", version.reason
    assert [*version.steps][:4] == ["data", "train", "fp32", "compare"]
    assert version.artifact == version.steps["train"].file
    found = version.comparison
    assert (found.parent, found.metric, found.own.rows, found.worse) == (1, "accuracy", 50, False)
    assert found.own.value > 0.9 > found.parents.value
    assert rig.log.registry.model("m").active == 1
    promoted = await rig.log.publish(ev.ModelPromoted(model="m", version=number))
    assert promoted.model("m").active == number
    made_of = version.variants["fp32"].provenance
    assert made_of.parent_sha256 == version.artifact.sha256
    drawn = made_of.data["data"]
    assert drawn.rows == 200
    assert sum(end - begin for begin, end in drawn.offsets.values()) == 201  # the garbage, too
    assert {"data", "train: train", "compare"} <= steps


def weights_of(content):
    return {each.name: numpy_helper.to_array(each) for each in onnx.load_from_string(content).graph.initializer}


async def test_an_update_begins_with_the_weights_of_another_model(rig, start):
    """Where name and shape match; and one that does not exist ends it."""
    own, other = uploads.mlp((8, 16, 4)), uploads.mlp((8, 16, 6))
    for tensor in other.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 3, tensor.name))
    await rig.upload("m", own, candidates=())
    await rig.upload("other", other, candidates=())
    x, label = blobs(64)
    options = {"data": DataFile(artifact=await rig.store_data(x=x, label=label)), "candidates": ()}
    hardly = Training(learning_rate=1e-7, epochs=1, held_out=0.0, warm_start=WarmStart(model="other", version=1))
    nowhere = Training(warm_start=WarmStart(model="other", version=9))
    with start():
        for model in ("m", "other"):
            await rig.ended(model)
        version = await rig.ended("m", await ask(rig, "m", hardly, **options))
        lost = await rig.ended("m", await ask(rig, "m", nowhere, upload_id="lost", **options))
    assert version.state == "ready", version.reason
    assert (await chosen(rig, version))["copied"] == 2
    begun, theirs, made = (
        weights_of(each)
        for each in (own.SerializeToString(), other.SerializeToString(), await rig.store.get_bytes(version.artifact))
    )
    for name in ("w0", "b0"):
        np.testing.assert_allclose(made[name], theirs[name], atol=1e-4)
    for name in ("w1", "b1"):
        np.testing.assert_allclose(made[name], begun[name], atol=1e-4)
    assert (lost.state, lost.code) == ("rejected", "not_trained")
    assert "no such version to start from" in lost.reason


async def test_a_worse_update_can_not_be_promoted(rig, start):
    await rig.upload("m", uploads.mlp())
    await kafka.ensure_topics(rig.settings, "m")
    with start():
        await rig.ended("m")
        await feed(rig, "m", 120)
        good = await ask(rig, "m", Training(learning_rate=0.02, epochs=20), data=LoggedRequests(labels="feedback"))
        first = await rig.ended("m", good)
        x, label = blobs(120)
        bad = await rig.store_data(x=x, label=(label + 1) % 4)
        judged = await rig.store_data(x=x, label=label)
        event = ev.UpdateRequested(
            model="m",
            upload_id="worse",
            parent=good,
            training=Training(learning_rate=0.05, epochs=20),
            optimization=Optimization(data=DataFile(artifact=bad), evaluation=DataFile(artifact=judged), candidates=()),
        )
        number = (await rig.log.publish(event)).model("m").uploads["worse"]
        second = await rig.ended("m", number)
    assert not first.comparison.worse
    assert second.comparison.worse
    assert second.comparison.own.value < 0.5 < second.comparison.parents.value
    refused = await rig.log.publish(ev.ModelPromoted(model="m", version=number))
    assert refused.model("m").active == 1


async def test_training_goes_on_from_its_last_checkpoint(rig, start):
    await rig.upload("m", uploads.mlp())
    x, label = blobs(2000)
    data = DataFile(artifact=await rig.store_data(x=x, label=label))
    training = Training(learning_rate=0.001, epochs=20, patience=None)
    with start("o1", checkpoint_s=0, dies={"DIES_AFTER": "train.2"}) as first:
        await rig.ended("m")
        number = await ask(rig, "m", training, data=data)
        before = (await rig.died(first)).version("m", number).steps
    assert "train.2" in before
    assert "train" not in before
    with start("o2", checkpoint_s=0):
        version = await rig.ended("m", number)
    assert version.state == "ready", version.reason
    told = [fact.step for fact in await rig.facts(ev.StepFinished) if fact.version == number]
    assert len(told) == len(set(told))
    assert [step for step in told if step.startswith("train.")] == [f"train.{epoch}" for epoch in range(1, 21)]


async def _heartbeat(rig, name):
    """The last heartbeat of an optimizer."""
    beats = [decode_event(heartbeat_events.Heartbeat, record.value) for record in await records_of(rig, topics.WORKERS)]
    return next((beat for beat in reversed(beats) if beat.instance.endswith(f"-{name}")), None)


async def _steps(rig, model):
    records = await records_of(rig, topics.METRICS)
    ours = [record for record in records if type_of(record) == "JobProgressed"]
    progress = [decode_event(metric_events.JobProgressed, record.value) for record in ours]
    return {event.step for event in progress if event.model == model}
