"""Claim checks: what goes to the store, putting and fetching, patience; and the worker's side, without Kafka."""

from __future__ import annotations

import asyncio
import hashlib
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.worker.claims import FetchClaims, Room, resolve
from services.worker.intake import HeldBytes
from services.worker.settings import WorkerSettings
from shared import claims
from shared.artifacts import Artifact, ArtifactStore
from shared.errors import (
    ArtifactNotFound,
    DeadlineExceeded,
    DigestMismatch,
    InvalidInput,
    StoreUnavailable,
    TooLarge,
)
from shared.oip import InferenceRequest, RequestedOutput
from shared.requests import RequestHeaders
from shared.results import Result
from shared.tensors import Tensor, from_numpy


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(root):
    return ArtifactStore(root.as_uri())


def tensor(name="x", rows=3, datatype="FP32"):
    if datatype == "BYTES":
        return from_numpy(name, np.array(["é", ""] * rows, dtype=object))
    return from_numpy(name, np.arange(rows, dtype=np.float32))


def path_of(root, artifact):
    return root / "sha256" / artifact.sha256[:2] / artifact.sha256[2:]


# ------------------------------------------------------------------ which go


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50)), st.integers(0, 100))
def test_the_rest_fits_and_nothing_goes_without_need(sizes, inline):
    gone = claims.to_store(sizes, inline)
    rest = {name: size for name, size in sizes.items() if name not in gone}
    assert sum(rest.values()) <= inline
    if gone:
        smallest_gone = min(sizes[name] for name in gone)
        assert all(size <= smallest_gone for size in rest.values())  # the largest first
        assert sum(rest.values()) + smallest_gone > inline  # one fewer would not have done


@pytest.mark.parametrize(
    ("parameters", "outputs", "asked"),
    [
        ({}, (), set()),
        ({"store_outputs": True}, (), {"a", "b"}),
        ({"store_outputs": False}, (), set()),
        ({"store_outputs": 1}, (), set()),
        ({}, (RequestedOutput("a", parameters={"store_outputs": True}), RequestedOutput("b")), {"a"}),
        ({"store_outputs": True}, (RequestedOutput("a", parameters={"store_outputs": False}),), {"b"}),
    ],
)
def test_who_asks_for_the_store(parameters, outputs, asked):
    request = InferenceRequest((), outputs, None, parameters)
    assert claims.asked_for(request, ["a", "b"]) == asked
    assert claims.asks(request) or not asked


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
@pytest.mark.parametrize("rows", [0, 3, 3_000_000])
async def test_round_trip(store, datatype, rows):
    if datatype == "BYTES" and rows > 3:
        rows = 10_000
    sent = tensor(rows=rows, datatype=datatype)
    stored = await claims.put(store, sent)
    assert stored.artifact == Artifact(
        uri=stored.artifact.uri, sha256=hashlib.sha256(sent.data).hexdigest(), byte_size=len(sent.data)
    )
    assert not stored.claimed
    alone = claims.without_data(stored)
    assert alone.claimed == bool(len(sent.data))
    fetched = await claims.fetch(store, alone)
    assert (fetched.shape, bytes(fetched.data)) == (sent.shape, bytes(sent.data))
    assert not fetched.claimed


async def test_a_tensor_without_a_claim_check_is_left_alone(store):
    assert claims.without_data(tensor()) == tensor()
    assert await claims.fetch(store, tensor()) == tensor()


async def test_what_is_fetched_is_checked(store, root):
    alone = claims.without_data(await claims.put(store, Tensor("x", "BYTES", (1,), b"\x01\x00\x00\x00a")))
    with pytest.raises(InvalidInput, match="length prefixes"):
        await claims.fetch(store, replace(alone, shape=(0,)))
    with pytest.raises(InvalidInput, match="BOOL"):
        await claims.fetch(store, replace(alone, datatype="BOOL", shape=(5,)))
    path_of(root, alone.artifact).write_bytes(b"\x01\x00\x00\x00b")
    with pytest.raises(DigestMismatch) as caught:
        await claims.fetch(store, alone)
    assert hashlib.sha256(b"\x01\x00\x00\x00b").hexdigest() not in caught.value.message
    path_of(root, alone.artifact).write_bytes(b"\x01\x00\x00\x00bc")
    with pytest.raises(DigestMismatch):
        await claims.fetch(store, alone)
    path_of(root, alone.artifact).unlink()
    with pytest.raises(ArtifactNotFound):
        await claims.fetch(store, alone)
    outside = Artifact(uri="file:///etc/passwd", sha256=alone.artifact.sha256, byte_size=5)
    with pytest.raises(InvalidInput, match="not within"):
        await claims.fetch(store, replace(alone, artifact=outside))


def test_a_result_keeps_its_claim_checks():
    artifact = Artifact(uri="s3://b/k", sha256="ab" * 32, byte_size=4)
    outputs = (
        Tensor("here", "INT8", (1,), b"\x01"),
        Tensor("there", "FP32", (1,), b"", artifact),
        Tensor("both", "FP32", (1,), b"\x00" * 4, artifact),
    )
    result = Result(id="r", status="succeeded", model_name="m", outputs=outputs)
    assert Result.decode(result.encode()) == result


# ------------------------------------------------------------------ patience


@pytest.fixture
def clock(monkeypatch):
    """Time that only passes while `patiently` sleeps."""
    clock = SimpleNamespace(now_s=0.0)

    async def sleep(seconds):
        clock.now_s += seconds

    loop = SimpleNamespace(time=lambda: clock.now_s)
    monkeypatch.setattr(claims, "asyncio", SimpleNamespace(get_running_loop=lambda: loop, sleep=sleep))
    return clock


async def test_a_store_that_comes_back_is_waited_for(clock):
    failures = iter([StoreUnavailable("away"), StoreUnavailable("away")])

    async def attempt():
        if (failure := next(failures, None)) is not None:
            raise failure
        return 7

    assert await claims.patiently(attempt, 0.5) == 7
    assert clock.now_s == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("error", "attempts_s"), [(StoreUnavailable("away"), [0, 0.1, 0.3, 0.7]), (ArtifactNotFound("gone"), [0])]
)
async def test_patience_has_an_end_and_is_for_the_store_alone(clock, error, attempts_s):
    attempted_s = []

    async def attempt():
        attempted_s.append(clock.now_s)
        raise error

    with pytest.raises(type(error)):
        await claims.patiently(attempt, 1.0)
    assert attempted_s == pytest.approx(attempts_s)


# ------------------------------------------------------------------ in the worker


def job(*tensors, deadline_ms=None):
    return SimpleNamespace(
        request=InferenceRequest(tensors, (RequestedOutput("y"),), "me", {"a": 1}),
        headers=RequestHeaders(deadline_ms=deadline_ms),
        plan=None,
        size_bytes=100,
        fetched_bytes=0,
    )


def step(store, **settings):
    held = HeldBytes(1000, settings.get("max_fetched_bytes", 1000))
    return FetchClaims(
        store, WorkerSettings(**{"store_wait_s": 0.2, "max_fetched_bytes": 1000, **settings}), held.fetched
    ), held


async def test_a_request_is_resolved_and_nothing_else_of_it_changes(store):
    small, large = tensor("small"), tensor("large", 100)
    request = InferenceRequest((small, claims.without_data(await claims.put(store, large))), (), "me", {"a": 1})
    resolved = await resolve(request, store, 1)
    assert [bytes(t.data) for t in resolved.inputs] == [bytes(small.data), bytes(large.data)]
    assert replace(resolved, inputs=request.inputs) == request


async def test_the_step_counts_what_it_fetches_until_the_job_ends(store):
    fetching, held = step(store)
    plain, claimed = job(tensor()), job(claims.without_data(await claims.put(store, tensor(rows=100))))
    assert (fetching.wanted(plain), fetching.wanted(claimed)) == (False, True)
    held.used += 200
    await fetching.apply(claimed)
    assert not fetching.wanted(claimed)
    assert (claimed.size_bytes, claimed.fetched_bytes, held.fetched.used) == (500, 400, 400)
    held.release([plain, claimed])
    assert (held.used, held.fetched.used) == (0, 0)


async def test_more_than_may_be_held_waits_its_turn_and_more_than_ever_fits_is_refused(store):
    fetching, held = step(store)
    claim = claims.without_data(await claims.put(store, tensor(rows=150)))  # 600 bytes
    jobs = [job(claim) for _ in range(3)]
    tasks = [asyncio.create_task(fetching.apply(each)) for each in jobs]
    await asyncio.wait_for(tasks[0], 30)
    assert held.fetched.used == 600  # and not what all of them have
    assert [task.done() for task in tasks] == [True, False, False]
    held.release([jobs[0]])
    await asyncio.wait_for(tasks[1], 30)
    assert held.fetched.used == 600
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)
    held.release(jobs[1:])
    assert held.fetched.used == 0
    with pytest.raises(TooLarge):
        await fetching.apply(job(claims.without_data(await claims.put(store, tensor(rows=300)))))


async def test_one_larger_than_the_bound_goes_alone():
    room = Room(10)
    await room.take(50)
    waiting = asyncio.create_task(room.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    room.give_back(50)
    await waiting
    assert room.used == 1


async def test_a_deadline_ends_the_wait_for_room(store):
    fetching, held = step(store)
    claim = claims.without_data(await claims.put(store, tensor(rows=150)))
    await held.fetched.take(900)
    late = job(claim, deadline_ms=int(time.time() * 1000) + 100)
    with pytest.raises(DeadlineExceeded):
        await fetching.apply(late)
    assert late.fetched_bytes == 0
    held.fetched.give_back(900)
    await held.fetched.take(1000)  # nobody is in the way


async def test_a_store_that_stays_away_is_the_outcome(store, root):
    fetching, _ = step(store)
    alone = claims.without_data(await claims.put(store, tensor(rows=100)))
    path = path_of(root, alone.artifact)
    path.unlink()
    with pytest.raises(ArtifactNotFound):
        await fetching.apply(job(alone))

    async def away(*_):
        raise StoreUnavailable("the artifact store is away")

    store.get_view = away
    with pytest.raises(StoreUnavailable):
        await fetching.apply(job(alone))
