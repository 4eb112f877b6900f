"""The monitor's folds: exact whatever the order, the repeats and the restarts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.monitor import fold as folding
from services.monitor.fold import OutcomeFold
from services.monitor.histogram import BOUNDS_NS, BOUNDS_S, Histogram
from services.monitor.measurements import FORGET_NS, Measurements
from services.monitor.snapshot import Stored, decode, encode
from services.monitor.totals import MAX_BATCH_SIZE
from shared.metric_events import BatchesRan, HttpAnswered
from shared.outcome_events import BatchMembership, Coordinates, Timings
from support.facts import receipt

LOG = "cluster/aiaas.outcomes"


def batch(size: int, index: int = 0) -> BatchMembership:
    return BatchMembership(id="b", index=index, size=size, padding=0, members_sha256="0" * 64)


@st.composite
def outcome_logs(draw):
    """Logs as writers that obey the rule leave them: each starts at the committed offset and appends without a gap.

    Partition p of the log has the outcomes of request partition p. Writers' runs interleave, which is what a zombie
    and its successor do; `worker` tells whose outcome it is.
    """
    logs = {}
    for partition in range(draw(st.integers(1, 3))):
        log, reached = [], 0
        for writer in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, reached))
            stop = start + draw(st.integers(0, 12))
            run = [
                receipt(
                    offset,
                    partition=partition,
                    worker=f"w{writer}",
                    status=draw(st.sampled_from(["succeeded", "failed", "expired", "cancelled"])),
                    batch=draw(st.none() | st.builds(batch, st.integers(1, 8))),
                    timings_ns=Timings(queue=draw(st.integers(0, 10**12)), compute_infer=draw(st.none() | st.just(5))),
                )
                for offset in range(start, stop)
            ]
            at = draw(st.integers(0, len(log)))  # a zombie's run may come late, or in between
            if reached and start < reached:
                log = interleave(draw, log, at, run)
            else:
                log += run
            reached = max(reached, stop)
        logs[partition] = log
    return logs


def interleave(draw, log, at, run):
    """`run`, spread over `log` from `at` on, where it may: not before what it continues is there."""
    first = next((i for i, r in enumerate(log) if r.request.offset >= run[0].request.offset), len(log)) if run else at
    head, tail = log[: max(at, first)], log[max(at, first) :]
    merged = []
    while run and tail:
        merged.append(run.pop(0) if draw(st.booleans()) else tail.pop(0))
    return head + merged + run + tail


def naive(logs):
    """The first outcome of each request, in the order of the log: what the fold must count without remembering."""
    first = {}
    for log in logs.values():
        for outcome in log:
            first.setdefault((outcome.request.topic, outcome.request.partition, outcome.request.offset), outcome)
    return list(first.values())


def numbers(fold: OutcomeFold) -> tuple:
    """Everything a fold knows, comparable."""
    stored = encode(LOG, Stored(fold))
    fold = decode(stored, LOG).outcomes
    return (
        fold.series,
        fold.ignored,
        fold.watermarks,
        fold.offsets,
    )


@given(outcome_logs(), st.randoms(use_true_random=False))
def test_counts_the_first_outcome_of_each_request_in_any_sittings(logs, random):
    once = OutcomeFold()
    for partition, log in logs.items():
        once.add([(partition, offset, outcome, 0) for offset, outcome in enumerate(log)])

    first = naive(logs)
    series = once.series.get("m/", folding.Series("m", None))
    assert series.statuses == Counter(o.status for o in first)
    assert series.batch_sizes == Counter(o.batch.size for o in first if o.batch)
    assert series.phases["queue"].sum_ns == sum(o.timings_ns.queue for o in first)
    assert once.ignored["repeat"] == sum(map(len, logs.values())) - len(first)

    # Killed at any moments, partitions read in any interleaving: it goes on from the last snapshot.
    fold, stored = OutcomeFold(), encode(LOG, Stored(OutcomeFold()))
    for _ in range(10_000):
        left = [p for p, log in logs.items() if fold.offsets.get(p, 0) < len(log)]
        if not left:
            break
        partition = random.choice(left)
        offset = fold.offsets.get(partition, 0)
        fold.add([(partition, offset, logs[partition][offset], 0)])
        match random.randrange(4):
            case 0:
                stored = encode(LOG, Stored(fold))
            case 1 if random.randrange(4) == 0:
                fold = decode(stored, LOG).outcomes
    assert numbers(fold) == numbers(once)


def test_every_phase_a_request_went_through_is_observed():
    fold = OutcomeFold()
    fold.add(
        [(0, 0, receipt(0, timings_ns=Timings(queue=10, compute_input=1, compute_infer=100, compute_output=2)), 0)]
    )
    fold.add([(0, 1, receipt(1, timings_ns=Timings(queue=7)), 0)])
    phases = fold.series["m/"].phases
    assert {phase: (h.count, h.sum_ns) for phase, h in phases.items()} == {
        "queue": (2, 17),
        "compute_input": (1, 1),
        "compute_infer": (1, 100),
        "compute_output": (1, 2),
        "total": (2, 120),
    }


def test_labels_are_bounded(monkeypatch):
    monkeypatch.setattr(folding, "MAX_SERIES", 5)
    fold = OutcomeFold()
    for offset in range(50):
        fold.add(
            [(0, offset, receipt(offset, model_version=offset + 1, status="failed", error_code=f"made up {offset}"), 0)]
        )
    assert len(fold.series) == 6
    assert fold.series["_other"].error_codes == {"other": 45}
    fold.add([(0, 50, receipt(50, model_version=99, status="failed", error_code="unknown_version"), 0)])
    assert "m/99" not in fold.series


def test_huge_and_negative_numbers_of_a_receipt_do_no_harm():
    fold = OutcomeFold()
    fold.add([(0, 0, receipt(0, timings_ns=Timings(queue=2**63), batch=batch(0)), 0)])
    fold.add([(0, 1, receipt(1, timings_ns=Timings(queue=-5, compute_infer=2**63), batch=batch(10**9)), 0)])
    fold = decode(encode(LOG, Stored(fold)), LOG).outcomes
    series = fold.series["m/"]
    assert series.phases["total"].sum_ns == 2**64
    assert series.batch_sizes == {1: 1, MAX_BATCH_SIZE: 1}


def test_duplicates_and_reexecutions_are_counted():
    fold = OutcomeFold()
    fold.add([(0, 0, receipt(0, duplicate_of=Coordinates(topic="t", partition=0, offset=0), reexecuted=True), 0)])
    fold.add([(0, 1, receipt(1), 0)])
    fold.add([(0, 2, "malformed", 0)])
    assert (fold.series["m/"].duplicates, fold.series["m/"].reexecuted) == (1, 1)
    assert fold.ignored == {"malformed": 1}
    assert fold.offsets == {0: 3}


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(durations, q):
    histogram = Histogram()
    for duration in durations:
        histogram.observe([duration])
    rank = max(1, -(-int(q * 100) * len(durations) // 100))
    true_s = sorted(durations)[rank - 1] / 1e9
    upper = next(bound for bound in BOUNDS_S if true_s <= bound)
    lower = max([0.0, *(bound for bound in BOUNDS_S if bound < upper)])
    assert lower <= histogram.quantile_s(q) <= upper
    assert histogram.cumulative()[-1] == ("+Inf", len(durations))


def test_histograms_without_or_beyond_bounds():
    histogram = Histogram()
    assert histogram.quantile_s(0.5) is None
    histogram.observe([BOUNDS_NS[-1] + 1])
    assert histogram.quantile_s(0.5) == BOUNDS_S[-1]


NOW = 10**18


def http(seq: int, *, incarnation: str = "i", at_ns: int = NOW, **fields) -> HttpAnswered:
    about = {"instance": "g", "incarnation": incarnation, "service": "gateway", "statuses": {200: 1}, "in_flight": 0}
    return HttpAnswered(**{**about, **fields}, seq=seq, at_ns=at_ns)


def test_measurements_ignore_repeats_of_each_run():
    measurements = Measurements()
    for event in [http(1), http(2), http(2), http(1, incarnation="j"), http(3), http(1), http(1, incarnation="j")]:
        measurements.add(event, NOW)
    assert measurements.http_statuses == {"200": 4}
    assert measurements.ignored == {"repeat": 3}


def test_measurements_forget_the_silent_and_keep_their_sums():
    measurements = Measurements()
    measurements.add(http(1), NOW)
    measurements.add(http(1, instance="other", at_ns=NOW + FORGET_NS, statuses={200: 1, 777: 2}), NOW + FORGET_NS + 1)
    assert [run.instance for run in measurements.latest(NOW + FORGET_NS + 1)] == ["other"]
    assert measurements.http_statuses == {"200": 2, "other": 2}


def test_a_clock_ahead_of_ours_does_not_keep_an_instance_for_ever():
    measurements = Measurements()
    measurements.add(http(1, at_ns=NOW * 2), NOW)
    assert measurements.latest(NOW + FORGET_NS + 1) == []


def test_the_latest_run_of_an_instance_stands_for_it():
    measurements = Measurements()
    measurements.add(http(5, in_flight=1), NOW)
    measurements.add(http(1, incarnation="j", at_ns=NOW + 1, in_flight=2), NOW + 1)
    [run] = measurements.latest(NOW + 1)
    assert (run.incarnation, run.http_in_flight) == ("j", 2)


def test_batches_add_up_over_workers():
    measurements = Measurements()
    for worker in ("w1", "w2"):
        about = {"instance": worker, "incarnation": "i", "service": "worker", "model": "m", "version": 1}
        event = {"variant": "fp32", "executions": 3, "sizes": {1: 1, 4: 2}, "compute_infer_ns": 9, "at_ns": NOW}
        measurements.add(BatchesRan(**about, **event, seq=1), NOW)
    runs = measurements.variants["m/1/fp32"]
    assert (runs.executions, runs.sizes, runs.compute_infer_ns) == (6, {1: 2, 4: 4}, 18)
