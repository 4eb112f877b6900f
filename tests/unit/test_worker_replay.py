"""Replays in the worker: which members run together, what is refused, and who goes first."""

from __future__ import annotations

import asyncio
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from msgspec.structs import replace

from services.worker.lane import Lane
from services.worker.replay import batch
from services.worker.replay.pinned import Pinned, PinnedVariant
from services.worker.settings import WorkerSettings
from services.worker.shelf import Shelf
from shared.artifacts import ArtifactStore
from shared.errors import DigestMismatch, TooLarge
from shared.events import Measurements
from shared.outcome_events import Coordinates
from shared.registry import Variant
from shared.replay_events import INLINE_BYTES, ReplayedRow, ReplayMember, ReplayRequested
from shared.tensors import from_numpy
from support import onnx_models
from support.facts import artifact

MODEL = onnx_models.linear()


def value_of(rows, number=0):
    array = np.random.default_rng(number).standard_normal((rows, 4)).astype(np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": array.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor]})


def member(number, rows=1, **fields):
    value = value_of(rows, number)
    about = {"input_sha256": hashlib.sha256(value).hexdigest(), "rows": rows, "value": value} | fields
    return ReplayMember(request=Coordinates(topic="t", partition=0, offset=number), **about)


def asked(*members, **fields):
    about = {
        "replay_id": "r",
        "batch_id": "b",
        "model": "m",
        "version": 1,
        "variant": "fp32",
        "artifact_sha256": "ab" * 32,
    }
    return ReplayRequested(**about | {"members": members} | fields)


def variant(cap=4, of=None):
    return Variant("fp32", of or artifact(), MODEL.signature, cap, Measurements())


def pinned(cap=4):
    return PinnedVariant(variant(cap), None, None, "ab" * 32, 1)


@pytest.fixture
def settings(tmp_path):
    return WorkerSettings(artifact_store_url=(tmp_path / "store").as_uri(), threads=1)


@pytest.fixture
def store(settings):
    return ArtifactStore(settings.artifact_store_url)


async def sizes(request, cap, store, settings):
    members = await batch.prepare(request, pinned(cap), store, settings)
    return [len(some) for some in batch.runs_of(request, members, pinned(cap))]


async def test_a_recorded_batch_runs_as_one_and_another_as_far_as_the_variant_lets_it(store, settings):
    members = [member(number, rows) for number, rows in enumerate([1, 2, 1, 1, 6, 1])]
    recorded = asked(*members, members_sha256=batch.members_digest(members))
    assert await sizes(recorded, 4, store, settings) == [6]
    assert await sizes(asked(*members), 4, store, settings) == [3, 1, 1, 1]
    assert await sizes(asked(*members), 1, store, settings) == [1] * 6


async def test_what_is_not_as_it_was_recorded_is_refused(store, settings):
    members = [member(0), member(1)]
    with pytest.raises(DigestMismatch, match="members"):
        await sizes(asked(*reversed(members), members_sha256=batch.members_digest(members)), 4, store, settings)
    with pytest.raises(DigestMismatch, match="offset 1 is not the recorded one"):
        await sizes(asked(members[0], replace(members[1], value=b"{}")), 4, store, settings)
    huge = replace(artifact(), byte_size=2**40)
    with pytest.raises(TooLarge):
        await sizes(asked(member(0, value=b"", artifact=huge)), 4, store, settings)


async def test_outputs_that_do_not_fit_a_record_go_to_the_store(store):
    small, large = (from_numpy(name, np.zeros(size // 4, np.float32)) for name, size in (("a", 4), ("b", INLINE_BYTES)))
    [row] = await batch.with_outputs([(ReplayedRow(), (small, large))], store, 1.0)
    inline, stored = row.outputs
    assert (len(inline.data), inline.artifact) == (4, None)
    assert stored.data == b""
    assert await store.get_bytes(stored.artifact) == bytes(large.data)
    assert "/replays/" in stored.artifact.uri  # where it is swept


async def put(store, content):
    async def chunks():
        yield content

    return await store.put_stream(chunks(), limit_bytes=len(content))


async def test_an_artefact_is_read_from_the_store_for_each_audit_and_counts_in_the_budget(store, settings):
    with ThreadPoolExecutor(1) as executor:
        shelf = Shelf(settings, store, executor, lambda: None)
        there = Pinned(settings, store, shelf)
        of = await put(store, MODEL.content)
        request = asked(member(0), artifact_sha256=of.sha256)
        first = await there.get(request, variant(of=of))
        assert await there.get(request, variant(of=of)) is first
        assert await there.get(replace(request, replay_id="another"), variant(of=of)) is not first
        assert shelf._held_bytes() == 2 * len(MODEL.content)
        with pytest.raises(DigestMismatch):
            await there.get(asked(member(0)), variant(of=of))
        there.clear()
        assert shelf._held_bytes() == 0


async def test_the_device_is_had_when_nothing_else_is_to_be_done_or_patience_ends():
    lane = Lane(SimpleNamespace(owner="w"), None, None, None, None, None)
    entered = asyncio.Event()

    async def replay(patience_s):
        async with lane.aside(patience_s):
            entered.set()

    running = asyncio.create_task(lane.run())
    await asyncio.wait_for(replay(60), 10)  # nothing was ever to be done
    entered.clear()
    lane._under_way = 1
    waiting = asyncio.create_task(replay(60))
    await asyncio.sleep(0.05)
    assert not entered.is_set()
    lane.wake()  # what only looks whether there is work is none, and the batch is still under way
    await asyncio.sleep(0.05)
    assert not entered.is_set()
    lane._under_way = 0
    lane.wake()  # as at the end of every run
    await asyncio.wait_for(waiting, 10)
    lane._under_way = 1
    await asyncio.wait_for(replay(0.01), 10)
    lane._under_way = 0
    lane.wake()
    assert lane.is_busy
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_live_work_is_there_for_a_while_after_a_run():
    lane = Lane(SimpleNamespace(owner="w"), None, None, None, None, None)
    assert not lane.is_live(3600)
    lane._begun_ns = time.perf_counter_ns()
    assert lane.is_live(3600)
    await asyncio.sleep(0.01)
    assert not lane.is_live(0.005)
    lane._under_way = 1
    assert lane.is_live(0.005)


async def test_others_get_their_turn_between_the_members_of_a_batch():
    """A callback that comes again each time the loop turns stands for the requests of others."""
    loop, turns = asyncio.get_running_loop(), 0

    def turn():
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    count = 20
    settings = SimpleNamespace(max_fetched_bytes=1 << 20, store_wait_s=1, max_preprocessing_s=60)
    asked_for = replace(asked(*(member(number) for number in range(count))), members_sha256=None)
    turn()
    await batch.prepare(asked_for, pinned(), None, settings)
    assert turns > 2 * count


async def test_a_batch_that_raises_fails_in_every_row():
    async def broken(_pinned, _feeds):
        raise DigestMismatch("x" * 5000)

    members = [batch.Member(member(0), batch.decode_request(None, value_of(1)), 1)] * 3
    rows = await batch.run(members, pinned(), broken)
    assert [row.error_code for row, _ in rows] == ["digest_mismatch"] * 3
    assert all(len(row.error) < 1000 for row, _ in rows)
