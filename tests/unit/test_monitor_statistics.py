"""Statistics by version: exact whatever the order of the partitions, the repeats and the restarts."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from services.monitor.fold import OutcomeFold
from services.monitor.publisher import Publisher
from services.monitor.snapshot import Stored, decode, encode
from services.monitor.totals import MAX_BATCH_SIZE
from shared.codec import decode_event, encode_event
from shared.outcome_events import BatchMembership, Coordinates, Duration, ModelStatistics, Timings
from shared.topics import Topics
from support.facts import receipt

LOG = "cluster/aiaas.outcomes"
SETTINGS = SimpleNamespace(topics=Topics("t."), instance="monitor-1")


def ran(size, index, infer_ns=100, **rows):
    timings = Timings(queue=7, compute_input=1, compute_infer=infer_ns, compute_output=2)
    batch = BatchMembership(id="b", index=index, size=size, padding=0, members_sha256="0" * 64, **rows)
    return {"batch": batch, "timings_ns": timings, "model_version": 1}


def event(fold, key="m/1"):
    series = fold.series[key]
    return series.totals.event(series.model, series.version, fold.offsets)


@st.composite
def runs(draw):
    """Batches over three request partitions, whose outcomes lie in as many partitions of the log, some repeated.

    Some receipts tell the rows, those of before do not. With the logs, the rows of the members of each batch.
    """
    next_offset, logs, batches = [0, 0, 0], [[], [], []], []
    for _ in range(draw(st.integers(0, 8))):
        members, infer_ns = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)), draw(st.integers(0, 10**9))
        succeeded, told = draw(st.integers(0, 9)) > 0, draw(st.booleans())
        batches.append((members if told else [1] * len(members), infer_ns, succeeded))
        for index, rows in enumerate(members):
            about_rows = {"rows": rows, "total_rows": sum(members)} if told else {}
            partition = draw(st.integers(0, 2))
            about = {"partition": partition, "status": "succeeded" if succeeded else "failed"}
            outcome = receipt(next_offset[partition], **about, **ran(len(members), index, infer_ns, **about_rows))
            logs[partition] += [outcome] * draw(st.sampled_from([1, 1, 1, 2]))
            next_offset[partition] += 1
    return logs, batches


@given(runs(), st.randoms(use_true_random=False))
def test_every_run_counts_once_in_any_order_and_any_sittings(given_runs, random):
    logs, batches = given_runs
    fold, position = OutcomeFold(), [0, 0, 0]
    while left := [p for p in range(3) if position[p] < len(logs[p])]:
        partition = random.choice(left)
        fold.add([(partition, position[partition], logs[partition][position[partition]], 1000 + position[partition])])
        position[partition] += 1
        if random.randrange(5) == 0:
            fold = decode(encode(LOG, Stored(fold)), LOG).outcomes
    good = [(members, infer_ns) for members, infer_ns, succeeded in batches if succeeded]
    requests = sum(len(members) for members, _ in good)
    failed = sum(len(members) for members, _, succeeded in batches if not succeeded)
    if not batches:
        assert fold.series == {}
        return
    counted = event(fold)
    assert decode_event(ModelStatistics, encode_event(counted)) == counted
    assert counted.executions == len(good)
    assert counted.inferences == sum(sum(members) for members, _ in good)
    assert counted.success.count == counted.compute_infer.count == requests
    assert counted.fail.count == failed
    assert counted.queue == Duration(count=requests, ns=7 * requests)
    assert counted.compute_infer.ns == sum(len(members) * infer_ns for members, infer_ns in good)
    by_rows = defaultdict(list)
    for members, infer_ns in good:
        by_rows[sum(members)].append(infer_ns)
    assert {run.batch_size: (run.compute_infer.count, run.compute_infer.ns) for run in counted.runs} == {
        rows: (len(of), sum(of)) for rows, of in by_rows.items()
    }
    assert counted.offsets == {p: len(logs[p]) for p in range(3) if logs[p]}


def test_what_did_not_run_is_no_inference():
    fold = OutcomeFold()
    first = Coordinates(topic="t", partition=0, offset=0)
    fold.add([(0, 0, receipt(0, **ran(1, 0)), 50)])
    fold.add([(0, 1, receipt(1, duplicate_of=first, model_version=1, timings_ns=Timings(queue=5)), 40)])
    for offset, status in enumerate(["failed", "expired", "cancelled"], start=2):
        fold.add(
            [(0, offset, receipt(offset, status=status, model_version=1, timings_ns=Timings(queue=10)), 60 + offset)]
        )
    counted = event(fold)
    assert (counted.inferences, counted.executions) == (1, 1)
    assert counted.success == Duration(count=2, ns=115)
    assert counted.fail == Duration(count=3, ns=30)
    assert counted.queue == Duration(count=2, ns=12)
    assert counted.compute_infer == Duration(count=1, ns=100)
    assert counted.last_inference_ms == 64


def test_a_batch_of_which_a_member_was_cancelled_while_it_ran():
    """Its receipt is then the gateway's. The run still counts once; if it was the first member, not at all."""
    fold = OutcomeFold()
    fold.add([(0, 0, receipt(0, **ran(3, 0)), 0)])
    fold.add([(0, 1, receipt(1, status="cancelled", model_version=1), 0)])
    fold.add([(0, 2, receipt(2, **ran(3, 2)), 0)])
    fold.add([(0, 3, receipt(3, status="cancelled", model_version=1), 0)])
    fold.add([(0, 4, receipt(4, **ran(2, 1)), 0)])
    assert (event(fold).executions, event(fold).inferences) == (1, 3)


def test_one_member_speaks_for_the_rows_of_the_run():
    fold = OutcomeFold()
    fold.add([(0, 0, receipt(0, **ran(2, 0, rows=3, total_rows=8)), 0)])
    fold.add([(0, 1, receipt(1, **ran(2, 1, rows=5, total_rows=8)), 0)])
    fold.add([(0, 2, receipt(2, **ran(1, 0)), 0)])  # alone, of a model without independent rows
    fold.add([(0, 3, receipt(3, **ran(1, 0, rows=0, total_rows=0)), 0)])
    counted = event(fold)
    assert (counted.inferences, counted.executions, counted.success.count) == (10, 3, 4)
    assert [(run.batch_size, run.compute_infer.count) for run in counted.runs] == [(1, 2), (8, 1)]


def test_rows_that_no_run_can_have_do_no_harm():
    fold = OutcomeFold()
    fold.add([(0, 0, receipt(0, **ran(1, 0, rows=2**64 - 1, total_rows=2**64 - 1)), 0)])
    fold.add([(0, 1, receipt(1, **ran(1, 0, rows=-(2**63), total_rows=-(2**63))), 0)])
    fold = decode(encode(LOG, Stored(fold)), LOG).outcomes
    counted = event(fold)
    assert decode_event(ModelStatistics, encode_event(counted)).inferences == 2**63 - 1
    assert [run.batch_size for run in counted.runs] == [1, MAX_BATCH_SIZE]


def test_numbers_that_no_run_can_have_do_no_harm():
    fold = OutcomeFold()
    fold.add([(0, 0, receipt(0, **ran(1, 0, 2**63)), 0)])
    fold.add([(0, 1, receipt(1, **ran(1, 0, 2**63)), 0)])
    fold.add([(0, 2, receipt(2, **ran(1, 0, -5)), 0)])
    fold.add([(0, 3, receipt(3, model_version=2**40), 0)])
    fold = decode(encode(LOG, Stored(fold)), LOG).outcomes
    counted = event(fold)
    assert decode_event(ModelStatistics, encode_event(counted)).compute_infer == Duration(count=3, ns=2**63 - 1)
    assert event(fold, f"m/{2**40}") is None


# ------------------------------------------------------------------ what is published, and when


class Sent:
    """A producer that remembers, or is away."""

    def __init__(self):
        self.events, self.keys, self.away = [], [], False

    async def send(self, topic, value, *, key, headers):
        assert topic == "t.statistics"
        assert ("ce_type", b"ModelStatistics") in headers
        if self.away:
            from aiokafka.errors import KafkaTimeoutError  # noqa: PLC0415 - only here

            raise KafkaTimeoutError
        self.events.append(decode_event(ModelStatistics, value))
        self.keys.append(key)
        return _done()


async def _done():
    return None


async def test_what_changed_is_published_and_nothing_else():
    fold, sent = OutcomeFold(), Sent()
    publisher = Publisher(SETTINGS, sent, fold)
    await publisher.publish()
    fold.add([(0, 0, receipt(0, **ran(1, 0)), 0)])
    fold.add([(0, 1, receipt(1, model_version=2), 0)])
    fold.add([(0, 2, receipt(2, status="failed", error_code="unknown_version"), 0)])  # of no version
    await publisher.publish()
    await publisher.publish()
    assert sent.keys == [b"m/1", b"m/2"]
    fold.add([(0, 3, receipt(3, model_version=2), 0)])
    await publisher.publish()
    assert sent.keys == [b"m/1", b"m/2", b"m/2"]
    assert (sent.events[-1].success.count, sent.events[-1].offsets) == (2, {0: 4})


async def test_what_kafka_did_not_take_is_sent_again():
    fold, sent = OutcomeFold(), Sent()
    publisher = Publisher(SETTINGS, sent, fold)
    fold.add([(0, 0, receipt(0, model_version=1), 0)])
    sent.away = True
    await publisher.publish()
    sent.away = False
    await publisher.publish()
    assert sent.keys == [b"m/1"]


async def test_a_restarted_monitor_tells_the_same_numbers():
    fold, first, second = OutcomeFold(), Sent(), Sent()
    for offset in range(5):
        fold.add([(0, offset, receipt(offset, **ran(1, 0)), 10 * offset)])
    await Publisher(SETTINGS, first, fold).publish()
    again = decode(encode(LOG, Stored(fold)), LOG).outcomes
    await Publisher(SETTINGS, second, again).publish()
    assert first.events == second.events
    assert len(first.events) == 1
