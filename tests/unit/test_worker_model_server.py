"""The queue of one model: which version answers, who waits, who is turned away, who runs together."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import orjson
import pytest
from msgspec.structs import replace

from services.worker.job import read
from services.worker.ledger import Ledger
from services.worker.model_server import ModelServer
from shared.errors import InvalidInput, ModelNotReady
from shared.events import (
    Measurements,
    ModelLoaded,
    ModelPromoted,
    ModelReady,
    ModelRetired,
    ModelUnloaded,
    ModelUploaded,
    OptimizationClaimed,
    RuntimeConfigured,
    VariantReady,
)
from shared.registry import Registry
from shared.runtime_config import Parameters, RuntimeConfig
from shared.signature import Signature, TensorSpec
from support.facts import artifact, folded
from support.waiting import eventually

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("n", "length"), batch_axis=0),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("n",), batch_axis=0),),
)


class FakeShelf:
    """A shelf whose loads the test finishes."""

    def __init__(self):
        self.loaded, self.wanted, self.failed = set(), [], {}

    def has(self, variant):
        return variant.artifact.sha256 in self.loaded

    def want(self, variant):
        self.wanted.append(variant.artifact.sha256)

    def failure(self, variant):
        return self.failed.get(variant.artifact.sha256)

    def take(self, variant):
        return variant.artifact.sha256


def version(number, *, cap=4):
    """The events of an upload that became ready."""
    attempt = {"model": "m", "version": number, "attempt": 1, "owner": "o"}
    made = artifact(f"variant {number}")
    return [
        ModelUploaded(model="m", upload_id=f"u{number}", artifact=artifact(f"upload {number}")),
        OptimizationClaimed(**attempt),
        VariantReady(
            **attempt, variant="fp32", artifact=made, signature=SIGNATURE, batch_cap=cap, measurements=Measurements()
        ),
        ModelReady(**attempt, variant="fp32", reason="r"),
    ]


@pytest.fixture
def shelf():
    return FakeShelf()


@pytest.fixture
def settled():
    return []


@pytest.fixture
def server(shelf, settled):
    made = ModelServer("m", Registry(), shelf, settled.extend, max_batch_bytes=10_000)
    made.adopt(folded(*version(1)))
    return made


LEDGER = Ledger("t.requests.m", 0, 0)


def job(offset, *, rows=1, length=3, deaths=0, request_id=None, high=False, **headers):
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, length], "data": [0.5] * rows * length}
    record = SimpleNamespace(
        topic="t.requests.m",
        partition=0,
        offset=offset,
        value=orjson.dumps({"inputs": [tensor]}),
        headers=[("ce_id", (request_id or f"r{offset}").encode())]
        + [(name.replace("_", "-"), str(value).encode()) for name, value in headers.items()],
    )
    return read(record, "m", LEDGER, deaths, high=high)


def load(server, shelf, *numbers):
    shelf.loaded |= {artifact(f"variant {number}").sha256 for number in numbers}
    server.adopt(server.latest)


def offsets(batch):
    return [job.record.offset for job in batch.jobs]


def test_a_job_waits_until_its_variant_is_in_memory(server, shelf):
    server.arrive([job(0)])
    assert server.next_batch() is None
    assert server.routed() and shelf.wanted  # noqa: PT018 - one thing: it asked for its variant
    load(server, shelf, 1)
    assert offsets(server.next_batch()) == [0]
    assert not server.waiting


def test_what_does_not_fit_is_settled_before_its_variant_is_in_memory(server, settled):
    strange = job(0)
    strange.request = replace(strange.request, inputs=())
    server.arrive([strange])
    assert settled == [strange]
    assert isinstance(strange.error, InvalidInput)
    assert not server.waiting


def test_a_batch_fills_up_to_the_cap_in_order_and_leaves_the_rest(server, shelf):
    load(server, shelf, 1)
    server.arrive(job(offset) for offset in range(6))
    assert offsets(server.next_batch()) == [0, 1, 2, 3]
    assert offsets(server.next_batch()) == [4, 5]
    assert server.next_batch() is None


def test_other_shapes_wait_for_their_own_batch_and_are_not_starved(server, shelf):
    load(server, shelf, 1)
    server.arrive([job(0), job(1, length=5), job(2), job(3, length=5)])
    assert offsets(server.next_batch()) == [0, 2]
    assert offsets(server.next_batch()) == [1, 3]


def test_rows_count_and_not_requests(server, shelf):
    load(server, shelf, 1)
    server.arrive([job(0, rows=3), job(1, rows=2), job(2)])
    assert offsets(server.next_batch()) == [0, 2]
    assert offsets(server.next_batch()) == [1]


def test_bytes_are_bounded(shelf, settled):
    server = ModelServer("m", Registry(), shelf, settled.extend, max_batch_bytes=job(0).size_bytes * 2)
    server.adopt(folded(*version(1)))
    load(server, shelf, 1)
    server.arrive(job(offset) for offset in range(3))
    assert offsets(server.next_batch()) == [0, 1]


def test_a_record_that_killed_a_worker_runs_alone(server, shelf):
    load(server, shelf, 1)
    server.arrive([job(0), job(1, deaths=1), job(2)])
    assert offsets(server.next_batch()) == [0, 2]
    assert offsets(server.next_batch()) == [1]


def test_two_jobs_of_one_id_are_never_in_one_batch(server, shelf):
    load(server, shelf, 1)
    server.arrive([job(0, request_id="same"), job(1, request_id="same")])
    assert offsets(server.next_batch()) == [0]
    assert offsets(server.next_batch()) == [1]


def test_what_is_overdue_or_does_not_fit_is_settled_without_a_run(server, shelf, settled):
    load(server, shelf, 1)
    late = job(0, deadline=int(time.time() * 1000) - 1000)
    wrong = job(1, model_version=9)
    server.arrive([late, wrong, job(2)])
    assert offsets(server.next_batch()) == [2]
    assert {j.record.offset: j.error.code for j in settled} == {0: "deadline_exceeded", 1: "unknown_version"}


def test_a_new_version_answers_only_when_it_is_in_memory(server, shelf):
    load(server, shelf, 1)
    server.adopt(folded(*version(1), *version(2), ModelPromoted(model="m", version=2)))
    server.arrive([job(0)])
    assert server.next_batch().jobs[0].plan.version.number == 1
    load(server, shelf, 2)
    server.arrive([job(1)])
    batch = server.next_batch()
    assert batch.jobs[0].plan.version.number == 2
    assert batch.jobs[0].plan.registry_offset == server.latest.offset


def test_a_version_asked_for_by_number_is_found_before_it_is_adopted(server, shelf, settled):
    load(server, shelf, 1)
    server.adopt(folded(*version(1), *version(2), ModelPromoted(model="m", version=2)))
    server.arrive([job(0, model_version=2)])
    assert server.next_batch() is None
    shelf.loaded.add(artifact("variant 2").sha256)
    assert server.next_batch().jobs[0].plan.version.number == 2
    assert settled == []


def test_a_new_version_that_does_not_load_leaves_the_old_one_answering(server, shelf):
    load(server, shelf, 1)
    shelf.failed[artifact("variant 2").sha256] = ModelNotReady("it does not load")
    server.adopt(folded(*version(1), *version(2), ModelPromoted(model="m", version=2)))
    server.arrive([job(0)])
    assert server.next_batch().jobs[0].plan.version.number == 1


def test_a_retired_model_turns_its_requests_away(server, shelf, settled):
    load(server, shelf, 1)
    server.adopt(folded(*version(1), ModelRetired(model="m")))
    server.arrive([job(0)])
    assert server.next_batch() is None
    assert [j.error.code for j in settled] == ["model_retired"]


def test_an_evicted_variant_is_asked_for_again_by_the_next_request_only(server, shelf):
    load(server, shelf, 1)
    shelf.loaded.clear()
    shelf.wanted.clear()
    server.adopt(server.latest)
    assert shelf.wanted == []
    server.arrive([job(0)])
    assert server.next_batch() is None
    assert server.routed() and shelf.wanted  # noqa: PT018 - one thing: it asked for its variant


def test_urgent_jobs_go_first_and_usual_ones_fill_their_batch(server, shelf):
    load(server, shelf, 1)
    server.arrive([job(0), job(1), job(2), *(job(offset, high=True) for offset in (10, 11))])
    assert offsets(server.next_batch()) == [10, 11, 0, 1]
    assert offsets(server.next_batch()) == [2]


def test_usual_jobs_are_not_starved_by_urgent_ones(server, shelf):
    load(server, shelf, 1)
    server.arrive([job(0)])
    first = []
    for number in range(6):
        server.arrive(job(100 + 10 * number + index, high=True) for index in range(4))
        first.append(offsets(server.next_batch())[0])
    assert first == [100, 101 + 9, 120, 130, 0, 143]


def test_deadlines_pass_while_nothing_runs(server, shelf, settled):
    load(server, shelf, 1)
    server.arrive([job(0, deadline=5_000), job(1, deadline=4_000), job(2)])
    assert server.earliest_ms == 4_000
    server.expire(4_000)
    assert settled == []
    server.expire(4_001)
    assert [(j.record.offset, j.error.code) for j in settled] == [(1, "deadline_exceeded")]
    assert server.earliest_ms == 5_000
    server.expire(6_000)
    assert [j.record.offset for j in settled] == [1, 0]
    assert server.earliest_ms is None
    assert offsets(server.next_batch()) == [2]


class Upper:
    """A step that needs a moment: it sets what the request asks for by hand."""

    def __init__(self):
        self.go = asyncio.Event()

    def wanted(self, job):
        return job.request.parameters.get("prepare") is True

    async def apply(self, job):
        await self.go.wait()
        if job.request.parameters.get("fail"):
            raise InvalidInput("it can't be prepared")
        job.request = replace(job.request, parameters={})


async def test_jobs_are_prepared_beside_the_queue(shelf, settled):
    step, woken = Upper(), []
    server = ModelServer("m", Registry(), shelf, settled.extend, 10_000, [step], lambda: woken.append(True))
    server.adopt(folded(*version(1)))
    load(server, shelf, 1)
    slow, wrong = job(0), job(1)
    slow.request = replace(slow.request, parameters={"prepare": True})
    wrong.request = replace(wrong.request, parameters={"prepare": True, "fail": True})
    server.arrive([slow, wrong, job(2)])
    assert offsets(server.next_batch()) == [2]
    step.go.set()
    await eventually(lambda: len(woken) == 2)
    assert offsets(server.next_batch()) == [0]
    assert [(j.record.offset, j.error.code) for j in settled] == [(1, "invalid_input")]


async def test_jobs_in_preparation_go_with_their_partition(shelf, settled):
    server = ModelServer("m", Registry(), shelf, settled.extend, 10_000, [Upper()])
    server.adopt(folded(*version(1)))
    load(server, shelf, 1)
    slow = job(0)
    slow.request = replace(slow.request, parameters={"prepare": True})
    server.arrive([slow, job(1)])
    assert [j.record.offset for j in server.drop(LEDGER)] == [0, 1]
    assert server.next_batch() is None
    assert server.drop(LEDGER) == []


def test_jobs_of_an_unloaded_model_are_settled_and_load_nothing(server, shelf, settled):
    server.arrive([job(0), job(1, model_version=1)])
    shelf.wanted.clear()
    server.adopt(folded(*version(1), ModelUnloaded(model="m")))
    assert server.next_batch() is None
    server.arrive([job(2)])
    assert [settled_job.error.code for settled_job in settled] == ["not_loaded"] * 3
    assert shelf.wanted == []
    server.adopt(folded(*version(1), ModelUnloaded(model="m"), ModelLoaded(model="m")))
    assert shelf.wanted == [artifact("variant 1").sha256]


# --------------------------------------------------------------------------- configured anew


def configured(*more, cap=4):
    return folded(*version(1, cap=cap), *more)


TWO_THREADS = RuntimeConfigured(model="m", config=RuntimeConfig(parameters=Parameters(intra_op_thread_count=2)))


@pytest.fixture
def sessions(shelf, server):
    """A shelf that tells sessions of one file apart, from when `server` has met its first version."""
    assert server.routed() and shelf.wanted  # noqa: PT018 - one thing: it asked for its variant
    shelf.wanted.clear()
    shelf.has = lambda variant: variant.key in shelf.loaded
    shelf.want = lambda variant: shelf.wanted.append(variant.key)
    shelf.failure = lambda variant: shelf.failed.get(variant.key)
    shelf.take = lambda variant: variant.key
    return shelf


@pytest.mark.parametrize("asked", [{}, {"model_version": 1}])
def test_options_are_taken_up_once_their_session_is_there(server, sessions, asked):
    before = server.routed()[0].key
    sessions.loaded.add(before)
    server.adopt(configured(TWO_THREADS))
    server.arrive([job(0, **asked)])
    assert server.next_batch().engine == before
    [after] = {*sessions.wanted} - {before}
    assert after[:2] == before[:2]
    assert {before, after} <= {variant.key for variant in server.known()}
    sessions.loaded.add(after)
    server.adopt(server.latest)
    server.arrive([job(1, **asked)])
    assert server.next_batch().engine == after
    assert {variant.key for variant in server.known()} == {after}


@pytest.mark.parametrize("asked", [{}, {"model_version": 1}])
def test_options_that_do_not_load_leave_the_old_ones_and_do_not_stand_in_the_way(server, sessions, asked):
    before = server.routed()[0].key
    sessions.loaded.add(before)
    server.adopt(configured(TWO_THREADS))
    [after] = {*sessions.wanted} - {before}
    sessions.failed[after] = ModelNotReady("no such device")
    server.adopt(server.latest)
    server.arrive([job(0, **asked)])
    assert server.next_batch().engine == before
    second = folded(*version(1), TWO_THREADS, *version(2), ModelPromoted(model="m", version=2))
    sessions.loaded.add(second.version("m", 2).serving.key)
    server.adopt(second)
    server.arrive([job(1)])
    assert server.next_batch().variant.artifact == artifact("variant 2")


def test_fewer_rows_a_run_need_no_other_session(server, sessions):
    sessions.loaded.add(server.routed()[0].key)
    server.adopt(configured(RuntimeConfigured(model="m", config=RuntimeConfig(max_batch_size=2))))
    server.arrive([job(offset) for offset in range(5)])
    assert [offsets(server.next_batch()) for _ in range(3)] == [[0, 1], [2, 3], [4]]
    server.adopt(configured(RuntimeConfigured(model="m", config=RuntimeConfig(max_batch_size=99))))
    server.arrive([job(offset) for offset in range(5, 10)])
    assert offsets(server.next_batch()) == [5, 6, 7, 8]
