"""The snapshot on disk: whole or not at all, and never used for another log."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.monitor import snapshot
from services.monitor.fold import OutcomeFold
from services.monitor.history import File, Manifest
from services.monitor.measurements import Measurements
from services.monitor.snapshot import Snapshots, Stored, encode
from shared.metric_events import GpuSample, HostSampled, JobProgressed
from support.facts import receipt
from support.strategies import required

LOG = "cluster/aiaas.outcomes"
ABOUT = {"instance": "w", "incarnation": "i", "service": "worker", "at_ns": 10**18}


def some_state() -> Stored:
    outcomes, measurements = OutcomeFold(), Measurements()
    outcomes.add([(2, 41, receipt(5, model_version=1, status="failed", error_code="run_timeout"), 0)])
    outcomes.add([(2, 42, "forged", 0)])
    gpu = GpuSample(index=0, name="g", utilisation_percent=1, memory_used_bytes=2, memory_total_bytes=3)
    sample = dict.fromkeys(required(HostSampled), 1)
    measurements.add(HostSampled(**{**sample, **ABOUT, "seq": 1, "gpus": (gpu,)}), 10**18)
    job = {"model": "m", "version": 1, "attempt": 1, "step": "vet", "fraction": 0.5}
    measurements.add(JobProgressed(**ABOUT, **job, seq=2), 10**18)
    return Stored(outcomes, measurements, Manifest((File(3, "counts", 10, 0, 3600),), 4))


async def test_what_is_saved_is_loaded(tmp_path):
    state = some_state()
    snapshots = Snapshots(tmp_path / "monitor" / "state.json")
    assert snapshots.load(LOG) is None
    assert await snapshots.save(encode(LOG, state))
    assert snapshots.load(LOG) == state
    assert [file.name for file in (tmp_path / "monitor").iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda data: data.replace(b'"format":3', b'"format":2'),
        lambda data: data.replace(b"50000,", b"60000,", 1),
        lambda data: data.replace(b"cluster/", b"another/"),
        lambda data: b"\xff" + data,
    ],
)
async def test_one_that_cannot_be_used_is_set_aside(tmp_path, damage):
    path = tmp_path / "state.json"
    path.write_bytes(damage(encode(LOG, some_state())))
    assert Snapshots(path).load(LOG) is None
    assert not path.exists()
    assert len(list(tmp_path.glob("*.unusable"))) == 1


async def test_a_cancelled_save_does_not_meet_the_next(tmp_path, monkeypatch):
    entered, leave = threading.Event(), threading.Event()
    replace = snapshot._replace

    def slow(path, data):
        if data == b"first":
            entered.set()
            leave.wait(5)
        replace(path, data)

    monkeypatch.setattr(snapshot, "_replace", slow)
    snapshots = snapshot.Snapshots(tmp_path / "state.json")
    first = asyncio.create_task(snapshots.save(b"first"))
    await asyncio.to_thread(entered.wait, 5)
    first.cancel()
    second = asyncio.create_task(snapshots.save(b"second"))
    await asyncio.sleep(0)
    leave.set()
    assert await second
    assert (tmp_path / "state.json").read_bytes() == b"second"


async def test_a_disk_that_refuses_is_no_end(tmp_path):
    (tmp_path / "monitor").write_text("a file where the directory should be")
    assert not await Snapshots(tmp_path / "monitor" / "state.json").save(b"{}")
