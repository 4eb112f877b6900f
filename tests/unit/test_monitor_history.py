"""The history: every row once through crashes at any moment, merging that loses nothing, and bounds."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime

import msgspec
import pytest

from services.monitor.fold import OutcomeFold
from services.monitor.history import History, Manifest, Retention
from services.monitor.recorder import Recorder, completed_ms
from services.monitor.sketch import quantiles_s
from shared.outcome_events import BatchMembership, Coordinates, Timings
from support.facts import receipt

DAY = 86_400
FOR_EVER = Retention(requests_s=400 * DAY)
NOON_S = 1_764_331_200
SUMS = "SELECT what, sum(n)::BIGINT FROM rows GROUP BY ALL ORDER BY ALL"


def outcome(offset: int, at_s: int, **fields):
    dice = random.Random(offset)
    size = dice.randint(1, 8)
    about = {
        "model_version": 1,
        "batch": BatchMembership(id="b", index=offset % size, size=size, padding=0, members_sha256="0", rows=2),
        "timings_ns": Timings(queue=dice.randint(0, 10**9), compute_infer=dice.randint(0, 10**8)),
        "completed_at": f"{_rfc3339(at_s)}.5Z",
    }
    return receipt(offset, **{**about, **fields})


def _rfc3339(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def fold_of(recorder: Recorder, outcomes) -> OutcomeFold:
    fold = OutcomeFold(sink=recorder)
    fold.add([(0, offset, each, at_s * 1000 + 700) for offset, (each, at_s) in enumerate(outcomes)])
    return fold


def sums(history: History, new=None, span=(0, 2**40), table="counts", sql=SUMS):
    with history.view(new or {}) as view:
        return view.rows(table, sql, span)


def save(history: History, recorder: Recorder) -> Manifest:
    writing = history.begin(recorder.take())
    history.write(writing)
    history.delete(history.done(writing))
    return writing.manifest


def merge_all(history: History, now_s: float) -> None:
    while due := history.due(now_s):
        history.replaced(history.compacted(*due))


def test_windows_are_by_event_time_and_sum_up_to_the_fold(tmp_path):
    history, recorder = History(tmp_path), Recorder()
    spread = [(outcome(n, NOON_S + n * 7), NOON_S + n * 7) for n in range(100)]
    fold = fold_of(recorder, spread)
    save(history, recorder)
    counted = dict(sums(history))
    [series] = fold.series.values()
    assert counted["outcome/succeeded"] == series.statuses["succeeded"] == 100
    assert counted["queue_ns"] == series.phases["queue"].sum_ns
    assert counted["run"] == series.totals.executions
    assert counted["rows"] == series.totals.inferences
    windows = sums(history, sql="SELECT window_s, sum(n)::BIGINT FROM rows WHERE what LIKE 'outcome/%' GROUP BY 1")
    assert dict(windows) == Counter((NOON_S + n * 7) // 10 * 10 for n in range(100))


def any_outcome(offset: int, at_s: int):
    """One of two versions that may have failed, or run alone, or say anything."""
    dice = random.Random(offset)
    batch = BatchMembership(id="b", index=offset % 2, size=offset % 5, padding=0, members_sha256="0")
    rows = dice.choice([{}, {"rows": dice.choice([-1, 0, 3, 2**60]), "total_rows": dice.randint(0, 9)}])
    status = dice.choice(["succeeded", "succeeded", "failed", "expired", "cancelled"])
    spent_ns = [dice.choice([None, -5, 2**62, dice.randint(0, 10**9)]) for _ in range(2)]
    return outcome(
        offset,
        at_s,
        model_version=dice.randint(1, 2),
        status=status,
        error_code=None if status == "succeeded" else dice.choice(["id_conflict", "made up"]),
        duplicate_of=dice.choice([None, Coordinates(topic="t", partition=0, offset=0)]),
        reexecuted=dice.random() < 0.5,
        batch=dice.choice([None, msgspec.structs.replace(batch, **rows)]),
        timings_ns=Timings(queue=dice.randint(-5, 10**9), compute_input=spent_ns[0], compute_infer=spent_ns[1]),
    )


def test_outcomes_together_count_as_one_after_the_other(tmp_path):
    log = [(any_outcome(n, NOON_S + n // 50), NOON_S + n // 50) for n in range(2000)]
    found = []
    for together in (2000, 7, 1):
        history, recorder = History(tmp_path / str(together)), Recorder()
        fold = OutcomeFold(sink=recorder)
        for begin in range(0, len(log), together):
            some = enumerate(log[begin : begin + together], begin)
            fold.add([(0, offset, each, at_s * 1000) for offset, (each, at_s) in some])
            if together == 1:
                recorder._tabulate()  # rows of one outcome alone
        save(history, recorder)
        counts = "SELECT window_s, model, version, what, bucket, sum(n)::HUGEINT FROM rows GROUP BY ALL ORDER BY ALL"
        rows = sums(history, table="requests", sql="SELECT * FROM rows ORDER BY log_offset")
        found.append((fold.series, sums(history, sql=counts), rows))
    assert found[0] == found[1] == found[2]
    assert len(found[0][2]) == len(log)


def test_an_event_time_that_cannot_be_is_not_believed():
    stamp_ms = NOON_S * 1000
    assert completed_ms(outcome(0, NOON_S - 600), stamp_ms) == (NOON_S - 600) * 1000 + 500
    for told in ("9999-01-01T00:00:00.0Z", "2001-01-01T00:00:00Z", "soon", "", "2025-13-01T00:00:00Z"):
        assert completed_ms(receipt(completed_at=told), stamp_ms) == stamp_ms


def test_a_crash_at_any_moment_loses_and_repeats_nothing(tmp_path):
    log = [(outcome(n, NOON_S + n * 40), NOON_S + n * 40) for n in range(150)]
    dice = random.Random(1)
    manifest, position, watermarks = Manifest(), 0, None
    for _ in range(30):
        history, recorder = History(tmp_path, FOR_EVER), Recorder()
        history.open(manifest)
        fold = OutcomeFold(sink=recorder)
        if watermarks is not None:
            fold.watermarks.highest = dict(watermarks)
        at = position
        while at < len(log):
            until = min(at + dice.randint(1, 20), len(log))
            for offset in range(at, until):
                fold.add([(0, offset, log[offset][0], log[offset][1] * 1000)])
            at = until
            crash = dice.randrange(5)
            if crash == 0:
                break  # folded, not stored
            writing = history.begin(recorder.take())
            snapshot = writing.manifest, at, dict(fold.watermarks.highest)
            history.write(writing)
            garbage = history.done(writing)
            if crash == 1:
                break  # files without a snapshot
            manifest, position, watermarks = snapshot
            history.delete(garbage)
            if crash == 2:
                merge_all(history, NOON_S + dice.choice([0, DAY, 30 * DAY]))
                if dice.randrange(2):
                    break  # merged, and no snapshot knows it
    history, recorder = History(tmp_path), Recorder()
    history.open(manifest)
    fold = OutcomeFold(sink=recorder)
    fold.watermarks.highest = dict(watermarks)
    for offset in range(position, len(log)):
        fold.add([(0, offset, log[offset][0], log[offset][1] * 1000)])
    save(history, recorder)
    straight, undisturbed = Recorder(), History(tmp_path / "undisturbed")
    fold_of(straight, log)
    save(undisturbed, straight)
    assert sums(history) == sums(undisturbed)
    ids = sums(history, table="requests", sql="SELECT request_id FROM rows ORDER BY 1")
    assert len(ids) == len(set(ids)) == len(log)


def test_merging_keeps_every_sum_and_bounds_the_files(tmp_path):
    history, recorder = History(tmp_path, Retention(requests_s=2 * DAY)), Recorder()
    everything = Counter()
    for day in range(3):
        for part in range(15):
            at_s = NOON_S + day * DAY + part * 480
            fold_of(recorder, [(outcome(n + part * 50, at_s + n), at_s + n) for n in range(50)])
            recorder.sample(at_s, "cpu_percent", part, instance="w")
            save(history, recorder)
    before = sums(history)
    everything.update(dict(before))
    merge_all(history, NOON_S + 3 * DAY)
    assert sums(history) == before
    quantile = "SELECT bucket, sum(n)::BIGINT FROM rows WHERE what = 'total' GROUP BY 1"
    assert quantiles_s(dict(sums(history, sql=quantile)), (0.5,))[0] > 0
    assert {file.step_s for file in history.manifest.files if file.table == "counts"} == {60}
    merge_all(history, NOON_S + 20 * DAY)
    assert sums(history) == before
    assert len([file for file in history.manifest.files if file.table == "counts"]) <= 2
    assert not [file for file in history.manifest.files if file.table == "requests"]
    most = sums(history, table="samples", sql="SELECT sum(n)::BIGINT, max(most) FROM rows")
    assert most == [(45, 14.0)]
    merge_all(history, NOON_S + 1000 * DAY)
    assert history.manifest.files == ()
    history.delete(history.done(history.begin({})))
    assert not list(tmp_path.glob("*.parquet"))


def test_rows_are_seen_before_while_and_after_they_are_stored(tmp_path):
    history, recorder = History(tmp_path), Recorder()
    fold_of(recorder, [(outcome(1, NOON_S), NOON_S)])
    new = recorder.take()
    recorder.back(new)
    expected = sums(history, new)
    writing = history.begin(recorder.take())
    assert sums(history) == expected
    history.write(writing)
    assert sums(history) == expected
    history.done(writing)
    assert sums(history) == expected
    assert expected


def test_a_disk_that_refuses_keeps_the_rows(tmp_path, monkeypatch):
    history, recorder = History(tmp_path), Recorder()
    fold_of(recorder, [(outcome(1, NOON_S), NOON_S)])
    new = recorder.take()
    writing = history.begin(new)
    monkeypatch.setattr(type(tmp_path), "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        history.write(writing)
    monkeypatch.undo()
    history.done(None)
    recorder.back(new)
    save(history, recorder)
    assert dict(sums(history))["outcome/succeeded"] == 1


def test_files_that_are_read_are_not_deleted(tmp_path):
    history, recorder = History(tmp_path), Recorder()
    for offset in range(15):
        fold_of(recorder, [(outcome(offset, NOON_S), NOON_S)])
        save(history, recorder)
    with history.view({}) as view:
        merge_all(history, NOON_S)
        garbage = history.done(history.begin({}))
        history.delete(garbage)
        assert dict(view.rows("counts", SUMS, (0, 2**40)))["outcome/succeeded"] == 15
    history.delete(garbage)
    assert len(list(tmp_path.glob("counts*.parquet"))) == 1


def test_what_receipts_claim_is_bounded():
    recorder = Recorder()
    claims = {
        "request_id": "x" * 5000,
        "timings_ns": Timings(queue=2**63 - 1, compute_infer=-5),
        "duplicate_of": Coordinates(topic="t" * 900, partition=0, offset=2**62),
        "registry_offset": -(2**60),
    }
    fold_of(recorder, [(outcome(n, NOON_S, **claims), NOON_S) for n in range(4)])
    tables = recorder.take()
    assert max(tables["counts"]["n"].to_pylist()) <= 2**53
    assert len(tables["requests"]["request_id"][0].as_py()) == 200
