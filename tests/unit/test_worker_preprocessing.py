"""Preprocessing as a step of a job: for which variant, counted, marked, and ended in time."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from services.worker.intake import HeldBytes
from services.worker.job import Plan, read
from services.worker.ledger import Ledger
from services.worker.processing import step as step_module
from services.worker.processing.processor import Processor
from services.worker.processing.step import Preprocessing
from services.worker.settings import WorkerSettings
from shared import processing
from shared.errors import DeadlineExceeded, InvalidInput, ModelNotReady, RunTimeout
from shared.events import Measurements
from shared.oip import encode_request_msgpack
from shared.registry import Variant
from shared.tensors import to_numpy
from support.fake_replies import FakeReplies
from support.processing import artifact, asking, classification, picture, template_matcher
from support.waiting import eventually

TOPIC = "t.requests.m"
MODEL = template_matcher(np.eye(3, 64))
GREY = picture(np.full((8, 8), 255))
WORDS = ("a", "b", "c")


def variant(declared=None):
    digest = None if declared is None else processing.sha256(declared)
    return Variant("fp32", artifact(MODEL.content), MODEL.signature, 8, Measurements(), declared, digest)


PLAIN = variant()
BRIGHT = variant(classification(WORDS))
DARK = variant(classification(WORDS, scale=0.0))


class FakeShelf:
    """Has every variant's processor, but for those that are away or failed."""

    def __init__(self):
        self.away, self.failed, self.slow = set(), {}, None

    async def loaded_processor(self, variant):
        if variant.key in self.failed:
            raise self.failed[variant.key]
        if variant.key in self.away:
            await asyncio.Event().wait()
        if variant.processing is None:
            return None
        processor = Processor(variant.processing, variant.signature, {})
        if self.slow is not None:
            prepare, slow = processor.prepare, self.slow
            processor.prepare = lambda *arguments: (slow(), prepare(*arguments))[1]
        return processor


class Rig:
    def __init__(self, **settings):
        self.shelf, self.held, self.replies = FakeShelf(), HeldBytes(1 << 30), FakeReplies()
        self.step = Preprocessing(WorkerSettings(**settings), self.shelf, self.held, self.replies)


@pytest.fixture
def rig():
    made = Rig(preprocessing_threads=1)
    yield made
    made.step.close()


def job(chosen, request=None, **headers):
    record = SimpleNamespace(
        topic=TOPIC,
        partition=0,
        offset=7,
        value=encode_request_msgpack(request or asking("image", GREY)),
        headers=[("content-type", b"application/msgpack")]
        + [(name, str(value).encode()) for name, value in headers.items()],
    )
    made = read(record, "m", Ledger(TOPIC, 0, 0), 0)
    assert made.error is None
    return planned(made, chosen)


def planned(made, chosen):
    made.plan = Plan(1, None, chosen, (), None)
    return made


def sent(made):
    return {tensor.name: to_numpy(tensor) for tensor in made.request.inputs}


async def test_a_picture_becomes_what_the_variant_takes(rig):
    made = job(BRIGHT)
    before_bytes = made.size_bytes
    assert rig.step.wanted(made)
    await rig.step.apply(made)
    assert not rig.step.wanted(made)
    assert sent(made)["x"].tolist() == [[1.0] * 64]
    assert made.preparation_ns > 0
    assert made.size_bytes - before_bytes == rig.held.used == 64 * 4


async def test_tensors_and_other_models_need_nothing(rig):
    assert not rig.step.wanted(job(PLAIN))
    prepared = job(BRIGHT)
    await rig.step.apply(prepared)
    assert not rig.step.wanted(job(BRIGHT, prepared.request))


async def test_if_another_version_answers_it_is_prepared_again_from_the_request_as_it_came(rig):
    made = job(BRIGHT)
    original = made.request
    await rig.step.apply(made)
    assert rig.step.wanted(planned(made, DARK))
    await rig.step.apply(made)
    assert sent(made)["x"].tolist() == [[0.0] * 64]
    assert rig.held.used == 64 * 4
    assert rig.step.wanted(planned(made, PLAIN))
    await rig.step.apply(made)
    assert made.request is original
    assert not rig.step.wanted(made)


async def test_what_does_not_fit_is_refused_before_it_is_decoded(rig):
    with pytest.raises(InvalidInput, match="10000 elements"):
        await rig.step.apply(job(BRIGHT, asking("image", *[b""] * 10_000)))
    with pytest.raises(InvalidInput, match="element 0 of 'image' is not a picture"):
        await rig.step.apply(job(BRIGHT, asking("image", b"")))
    assert rig.held.used == 0


async def test_while_it_is_prepared_its_record_is_marked_as_in_a_run(rig):
    going_on, marked = threading.Event(), []
    rig.shelf.slow = going_on.wait
    preparing = asyncio.create_task(rig.step.apply(job(BRIGHT)))
    await eventually(lambda: rig.replies._running)
    marked = await rig.replies.running("m")
    going_on.set()
    await preparing
    assert marked == {(f"{TOPIC}/0", 7)}
    assert await rig.replies.running("m") == set()


async def test_a_mark_that_a_dead_worker_left_counts_as_a_death(rig):
    going_on = threading.Event()
    rig.shelf.slow = going_on.wait
    preparing = asyncio.create_task(rig.step.apply(job(BRIGHT)))
    await eventually(lambda: rig.replies._running)
    deaths = await rig.replies.count_deaths("m", "another owner", {f"{TOPIC}/0": 0})
    going_on.set()
    await preparing
    assert deaths == {(f"{TOPIC}/0", 7): 1}


async def test_what_takes_too_long_fails_and_keeps_its_thread_until_it_is_done(monkeypatch):
    monkeypatch.setattr(step_module, "_GRACE_S", 0.05)
    rig = Rig(preprocessing_threads=1, max_preprocessing_s=0.05)
    going_on = threading.Event()
    rig.shelf.slow = going_on.wait
    with pytest.raises(RunTimeout, match=r"preprocessing took longer than 0\.05 s"):
        await rig.step.apply(job(BRIGHT))
    rig.shelf.slow, rig.step._timeout_s = None, 60
    behind = asyncio.create_task(rig.step.apply(job(BRIGHT)))
    await asyncio.sleep(0.1)
    assert not behind.done()
    going_on.set()
    await asyncio.wait_for(behind, 30)
    rig.step.close()


async def test_a_deadline_that_passed_is_told_before_anything_is_decoded(rig):
    late_ms = int(time.time() * 1000) - 1000
    with pytest.raises(DeadlineExceeded):
        await rig.step.apply(job(BRIGHT, deadline=late_ms))


async def test_a_variant_that_is_not_there_soon_is_asked_for_again_and_one_that_failed_is_told(rig, monkeypatch):
    monkeypatch.setattr(step_module, "_LOOK_AGAIN_S", 0.02)
    rig.shelf.away.add(BRIGHT.key)
    made = job(BRIGHT)
    await rig.step.apply(made)
    assert rig.step.wanted(made)
    rig.shelf.failed[BRIGHT.key] = ModelNotReady("it does not load")
    with pytest.raises(ModelNotReady):
        await rig.step.apply(made)


async def test_a_job_that_is_dropped_counts_nothing(rig):
    going_on = threading.Event()
    rig.shelf.slow = going_on.wait
    made = job(BRIGHT)
    preparing = asyncio.create_task(rig.step.apply(made))
    await eventually(lambda: rig.replies._running)
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    going_on.set()
    assert (rig.held.used, made.original) == (0, None)
    assert await rig.replies.running("m") == set()
    await asyncio.wait_for(rig.step.apply(made), 30)  # the thread is free again


def test_the_settings_of_a_variant_are_its_key():
    assert len({PLAIN.key, BRIGHT.key, DARK.key, replace(BRIGHT, name="int8").key}) == 3
