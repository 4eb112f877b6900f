"""Candidates measured on the class of worker that will serve them: the optimizer and workers as processes, on Kafka."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest

from services.optimizer.rows import packed
from services.optimizer.settings import OptimizerSettings
from services.worker.settings import WorkerSettings
from shared import events as ev
from shared import heartbeat_events, heartbeats, kafka, measurement_events, measurements, topics
from shared.codec import decode_event
from shared.machine import isa
from support import onnx_models, uploads, worker_rig
from support.optimizer_rig import Starter, heard, optimizer_rig, records_of, type_of
from support.waiting import eventually

pytestmark = pytest.mark.stack
CANDIDATES = ("int8-weight-only", "int8-static")
LIKE_THIS = 1
"""The optimizer's threads: another number of them is another class."""


@pytest.fixture
async def rig(backbone, tmp_path):
    settings = backbone.settings(OptimizerSettings, threads=LIKE_THIS, scratch_dir=tmp_path, max_loss=1.0)
    async with optimizer_rig(settings) as rig:
        rig.worker = backbone.settings(
            WorkerSettings, topic_prefix=settings.topic_prefix, artifact_store_url=settings.artifact_store_url
        )
        yield rig


@pytest.fixture
def start(rig, tmp_path):
    """Start an optimizer or a worker of some name, as a context that ends with it."""
    starter = Starter(rig, tmp_path)

    def start(name, kind="optimizer", **changed):
        return starter(name, kind, rig.worker if kind == "worker" else None, **changed)

    return start


async def told(rig, event_type):
    records = await records_of(rig, topics.MEASUREMENTS)
    return [decode_event(event_type, record.value) for record in records if type_of(record) == event_type.__name__]


def measured_of(version):
    found = {variant.name: variant.measurements for variant in version.variants.values()}
    return found | {each.variant: each.measurements for each in version.rejections}


async def test_a_worker_of_another_class_measures_and_the_gate_judges_by_it(rig, start):
    """Two workers of one class are up: one of them is asked, once."""
    with start("w1", "worker", threads=2), start("w2", "worker", threads=2):
        await heard(rig, "w1", "w2")
        with start("o1"):
            await rig.upload("m", uploads.mlp((8, 64, 4)), candidates=CANDIDATES)
            version = await rig.ended("m")
    assert version.state == "ready", version.reason
    [question], [answer] = [
        await told(rig, each) for each in (measurement_events.MeasurementRequested, measurement_events.MeasurementTaken)
    ]
    assert (answer.id, answer.worker, answer.failed) == (question.id, question.worker, "")
    assert {*question.candidates} == {*answer.latencies} == {*CANDIDATES}
    for name in CANDIDATES:
        [there] = measured_of(version)[name].on_workers
        assert (there.machine.threads, there.worker) == (2, answer.worker)
        assert [each.batch_size for each in there.latencies] == [1, 8, 32]
        assert all(each.p50_s > 0 and each.reference_s > 0 for each in there.latencies)
    texts = [each.reason for each in (*version.variants.values(), *version.rejections) if each.reason]
    assert any("2 threads" in text for text in [*texts, version.reason]), texts
    assert "not measured" not in version.reason
    assert {"inputs", "elsewhere"} < {*version.steps}


async def test_workers_of_the_same_class_are_not_asked(rig, start):
    with start("w1", "worker", threads=LIKE_THIS):
        await heard(rig, "w1")
        with start("o1"):
            await rig.upload("m", uploads.mlp((8, 64, 4)), candidates=CANDIDATES)
            version = await rig.ended("m")
    assert {*version.steps} == {"fp32", *CANDIDATES}
    assert await told(rig, measurement_events.MeasurementRequested) == []


@asynccontextmanager
async def dumb_worker(rig, name="a-dumb"):
    """One that is alive and idle, as its heartbeats say, and answers nothing. Yields its name, and what ends it."""
    beat = heartbeat_events.Heartbeat(
        instance=f"{rig.settings.instance}-{name}",
        incarnation="1",
        service="worker",
        machine=ev.MachineClass(isa=isa(), providers=("CPUExecutionProvider",), threads=2),
        registry_offset=0,
        interval_s=2.0,
    )
    async with kafka.started(lambda: kafka.producer(rig.settings), "dumb worker") as producer:
        task = asyncio.create_task(heartbeats.publish(rig.settings, producer, lambda: beat))
        try:
            await heard(rig, name)
            yield f"{beat.instance}/{beat.incarnation}", task.cancel
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _first(rig):
    return next(iter(await told(rig, measurement_events.MeasurementRequested)), None)


async def test_a_worker_that_dies_over_it_is_replaced_by_another(rig, start):
    with start("w2", "worker", threads=2):
        await heard(rig, "w2")
        async with dumb_worker(rig) as (dumb, die):
            with start("o1"):
                await rig.upload("m", uploads.mlp((8, 64, 4)), candidates=CANDIDATES)
                first = await eventually(lambda: _first(rig), within_s=60, what="a question")
                die()
                version = await rig.ended("m")
    assert version.state == "ready", version.reason
    questions = await told(rig, measurement_events.MeasurementRequested)
    assert [first.worker, len(questions)] == [dumb, 2]
    assert questions[1].worker.startswith(f"{rig.settings.instance}-w2/")
    for name in CANDIDATES:
        [there] = measured_of(version)[name].on_workers
        assert there.worker == questions[1].worker
    assert "not measured" not in version.reason


async def test_nobody_answers_and_that_is_on_record(rig, start):
    async with dumb_worker(rig) as (dumb, _):
        with start("o1", measure_timeout_s=1.0):
            await rig.upload("m", uploads.mlp((8, 64, 4)), candidates=CANDIDATES)
            version = await rig.ended("m")
    assert version.state == "ready"
    assert f"2 threads: {dumb}: no answer within 1 s" in version.reason
    assert all(not each.on_workers for each in measured_of(version).values())


async def test_an_optimizer_killed_while_it_waits_asks_again_and_does_nothing_else_again(rig, start):
    async with dumb_worker(rig) as (_, die):
        with start("o1") as optimizer:
            await rig.upload("m", uploads.mlp((8, 64, 4)), candidates=CANDIDATES)
            await eventually(lambda: _first(rig), within_s=60, what="a question")
            optimizer.kill()
        die()
        before = (await rig.log.caught_up()).version("m", 1).steps
        assert {*before} == {"fp32", "inputs", *CANDIDATES}
        with start("w1", "worker", threads=2), start("o2"):
            version = await rig.ended("m")
    assert {name: version.steps[name] for name in before} == dict(before)
    steps = [fact.step for fact in await rig.facts(ev.StepFinished)]
    assert len(steps) == len({*steps})
    assert version.state == "ready"


# --------------------------------------------------------------------------- the worker's side


async def inputs(rig, *sizes, columns=4):
    arrays = {f"{size}.0": np.ones((size, columns), np.float32) for size in sizes}
    return await rig.store(packed(arrays))


@asynccontextmanager
async def answers(settings):
    """Answers as they come, by their question's id."""
    found = {}
    async with measurements.followed(
        settings, measurement_events.MeasurementTaken, lambda answer: found.setdefault(answer.id, answer)
    ):
        yield found


async def test_a_worker_measures_below_its_traffic_and_hostile_candidates_cost_themselves(backbone):
    """Requests are answered all the while; a candidate that can't be loaded, or does not end, hurts nobody."""
    settings = backbone.settings(WorkerSettings, threads=1, request_partitions=1)
    model, made = backbone.model(), onnx_models.linear()
    async with worker_rig.rig(settings) as rig, worker_rig.worker_running(settings), answers(settings) as found:
        await rig.upload(model, made)
        await heard(rig, settings.instance)  # from then on it hears questions
        reference = await rig.store(made.content)
        garbage = await rig.store(b"not a model")
        endless = await rig.store(uploads.endless(("rows", 4)).SerializeToString())
        questions = {
            "mixed": {"good": reference, "garbage": garbage, "last": reference},
            "endless": {"endless": endless},
        }
        async with kafka.started(lambda: kafka.producer(settings), "optimizer") as producer:
            for name, candidates in questions.items():
                question = measurement_events.MeasurementRequested(
                    id=name,
                    model=model,
                    version=1,
                    asked_by="o/1",
                    worker=settings.owner,
                    reference=reference,
                    candidates=candidates,
                    signature=made.signature,
                    inputs=await inputs(rig, 1, 8),
                    timeout_s=60,
                )
                await measurements.publish(settings, producer, model, question)
                stranger = msgspec.structs.replace(question, id=f"{name}-for-another", worker="another/1")
                await measurements.publish(settings, producer, model, stranger)
            sent = 0
            until_s = time.monotonic() + 120
            while len(found) < len(questions):
                assert time.monotonic() < until_s, f"only {[*found]} were answered"
                value = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
                await rig.send(model, json.dumps(value).encode(), ce_id=f"r{sent}", content_type="application/json")
                assert (await rig.result(model, f"r{sent}", within_s=60)).status == "succeeded"
                sent += 1
    assert {*found} == {*questions}
    mixed = found["mixed"]
    assert [each.batch_size for each in mixed.latencies["good"]] == [1, 8]
    assert {*mixed.latencies} == {"good", "last"}
    assert "does not load" in mixed.problems["garbage"]
    assert mixed.failed == ""
    assert "took longer than 1 s" in found["endless"].failed
    assert sent > 1
