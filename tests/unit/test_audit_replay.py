"""The pure parts of replay and back-test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.audit.records import RecordedOutcome, RecordedRequest
from services.audit.replay import page
from services.audit.replay.batches import SETTLED_MS, Assembler
from services.audit.replay.comparing import LEAST_LABELLED, Pair, compare
from services.audit.replay.configurations import Configurations
from services.audit.replay.contenders import contender
from services.audit.replay.differences import differences, within
from services.audit.replay.outstanding import ATTEMPTS, OVERTAKEN_S, SILENT_S, Outstanding
from services.audit.replay.summary import Summary
from services.audit.replay.use import selected
from services.audit.replay.verdicts import not_reproducible, of_row
from services.audit.sources import milliseconds
from shared import events as ev
from shared import outcome_events
from shared.errors import InvalidInput, UnknownModel, UnknownVersion
from shared.registry import Registry
from shared.replay_events import ReplayedRow, ReplayMember, ReplayRan, ReplayRequested
from shared.runtime_config import RuntimeConfig
from shared.signature import Signature, TensorSpec
from shared.tensors import from_numpy, output_digest
from shared.topics import Topics
from support.facts import log_of, made_ready, receipt, uploaded

RUNTIME = outcome_events.Runtime(
    engine="onnxruntime", version="1.23", provider="CPUExecutionProvider", options={}, threads=1, isa="avx2"
)


# --------------------------------------------------------------------------- batches


def value_of(offset):
    return f"value {offset}".encode()


def batch_of(offsets, batch_id="b", partition=0, at_ms=1000):
    """The recorded outcomes of a batch of requests."""
    lines = (
        f"t.requests.m-{partition}-{offset} {hashlib.sha256(value_of(offset)).hexdigest()}\n" for offset in offsets
    )
    members = hashlib.sha256("".join(lines).encode()).hexdigest()
    return [
        recorded(
            offset,
            partition,
            outcome_events.BatchMembership(id=batch_id, index=i, size=len(offsets), padding=0, members_sha256=members),
            at_ms,
        )
        for i, offset in enumerate(offsets)
    ]


def recorded(offset, partition, membership, at_ms=1000, **changes):
    at = outcome_events.Coordinates(cluster_id="c", topic="t.requests.m", partition=partition, offset=offset)
    found = replace(
        receipt(offset),
        request=at,
        input_sha256=hashlib.sha256(value_of(offset)).hexdigest(),
        batch=membership,
        runtime=RUNTIME,
        **changes,
    )
    request = RecordedRequest(at, at_ms, None, (), value_of(offset))
    return RecordedOutcome("c/outcomes", 0, offset, at_ms, b"", b"", found, request, "expired")


def put_together(outcomes, wanted=lambda _: True):
    assembler = Assembler()
    found = [batch for outcome in outcomes for batch in assembler.add(outcome, wanted=wanted(outcome))]
    return [*found, *assembler.rest()]


@given(st.permutations(range(6)))
def test_a_batch_is_whole_in_whatever_order_its_members_come(order):
    outcomes = batch_of([4, 7, 1, 0, 9, 2])
    [batch] = put_together([outcomes[index] for index in order])
    assert batch.members == tuple(outcomes)
    assert batch.problem is None
    assert batch.wanted == frozenset(range(6))


def test_a_batch_without_all_its_members_says_so_and_waits_for_them_as_long_as_they_may_take():
    first, second = batch_of([0, 1], "b"), batch_of([2], "later", at_ms=1000 + SETTLED_MS)
    assembler = Assembler()
    assert list(assembler.add(first[0], wanted=True)) == []
    found = list(assembler.add(second[0], wanted=True))
    assert [batch.id for batch in found] == ["later", "b"]
    assert found[1].problem == "batch_incomplete: 1 of 2 members were found"


def test_neighbours_of_what_is_wanted_come_along_and_batches_without_any_do_not():
    outcomes = [*batch_of([0, 1, 2], "one"), *batch_of([3, 4], "other")]
    [batch] = put_together(outcomes, lambda outcome: outcome.receipt.request.offset == 1)
    assert (batch.id, len(batch.members), batch.wanted) == ("one", 3, frozenset({1}))


def test_a_member_whose_request_is_gone_is_named_and_so_are_members_that_do_not_belong():
    outcomes = batch_of([0, 1])
    erased = [outcomes[0], RecordedOutcome(*(*fields(outcomes[1])[:-2], "erased", "erased"))]
    [batch] = put_together(erased)
    assert batch.problem.startswith("request_erased")
    forged = [outcomes[0], batch_of([5, 6])[1]]
    [batch] = put_together(forged)
    assert batch.problem.startswith("members_mismatch")


def fields(outcome):
    return [getattr(outcome, name) for name in outcome.__slots__]


# --------------------------------------------------------------------------- at workers


def asked(batch_id, attempt=1):
    at = outcome_events.Coordinates(topic="t", partition=0, offset=0)
    member = ReplayMember(request=at, input_sha256="ab" * 32, value=b"x" * 10)
    return ReplayRequested(
        replay_id="r", batch_id=batch_id, attempt=attempt, model="m", version=1, variant="fp32",
        artifact_sha256="ab" * 32, members=(member,),
    )  # fmt: skip


def test_only_so_many_batches_and_bytes_are_under_way():
    outstanding = Outstanding(most=3, most_bytes=15)
    outstanding.sent("a", asked("a"), 0, 0.0)
    assert outstanding.has_room
    outstanding.sent("b", asked("b"), 0, 0.0)
    assert not outstanding.has_room
    assert outstanding.answered("a", 1.0).key == "a"
    assert outstanding.answered("a", 1.0) is None
    assert outstanding.has_room


def test_a_batch_that_was_overtaken_in_its_partition_is_lost_and_one_elsewhere_is_not():
    outstanding = Outstanding(most=10, most_bytes=1000)
    for number, partition in enumerate([0, 1, 0]):
        outstanding.sent(number, asked(f"{number}"), partition, 0.0)
    outstanding.answered("2", 1.0)
    assert list(outstanding.lost(1.0)) == []
    assert [sent.key for sent in outstanding.lost(1.0 + OVERTAKEN_S + 0.1)] == [0]


def test_a_batch_that_nobody_answers_is_waited_for_longer_each_time():
    outstanding = Outstanding(most=10, most_bytes=1000)
    for attempt in range(1, ATTEMPTS + 1):
        outstanding.sent("a", asked("a", attempt), 0, 0.0)
        patience_s = SILENT_S * 2 ** (attempt - 1)
        assert list(outstanding.lost(patience_s - 0.1)) == []
        [lost] = outstanding.lost(patience_s + 0.1)
    outstanding.give_up(lost)
    assert len(outstanding) == 0
    assert outstanding.has_room


# --------------------------------------------------------------------------- differences and verdicts


def tensor(*values, datatype=np.float32, name="y"):
    return from_numpy(name, np.array([values], datatype))


def test_equal_bytes_do_not_differ_and_signs_of_zero_do():
    assert differences((tensor(1.0, float("nan")),), (tensor(1.0, float("nan")),)) == ()
    [found] = differences((tensor(0.0),), (tensor(-0.0),))
    assert (found.elements, found.max_abs) == (1, 0.0)
    assert within([found], 1e-9)


@given(st.floats(-1e6, 1e6, width=32), st.floats(-10, 10, width=32), st.floats(1e-6, 10))
def test_a_tolerance_is_absolute_near_zero_and_relative_far_from_it(value, change, tolerance):
    old, new = tensor(value), tensor(value + change)
    found = differences((old,), (new,))
    a, b = np.float64(np.float32(value)), np.float64(np.float32(value + change))
    assert within(found, tolerance) == (abs(a - b) / (1 + abs(a)) <= tolerance)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (tensor(1, datatype=np.int64), tensor(2, datatype=np.int64)),
        (tensor(1.0), tensor(float("nan"))),
        (tensor(1.0), tensor(1.0, 1.0)),
        (tensor(1.0), tensor(1.0, datatype=np.float64)),
        (tensor(True, datatype=bool), tensor(False, datatype=bool)),
        (from_numpy("y", np.array([b"a"], object)), from_numpy("y", np.array([b"b"], object))),
        (tensor(1.0), tensor(1.0, name="z")),
    ],
    ids=["classes", "nan", "shape", "datatype", "flags", "texts", "name"],
)
def test_what_is_no_nearly_equal_number_is_within_no_tolerance(old, new):
    found = differences((old,), (new,))
    assert found
    assert not within(found, 1e9)


def verdict(old, new, *, tolerance=0.0, runtime=RUNTIME, kept=True, status="succeeded", error=None, **row):
    found = replace(receipt(1), status=status, error_code=error, runtime=RUNTIME, output_sha256=output_digest([old]))
    ran = ReplayRan(
        replay_id="r", batch_id="b", attempt=1, status="ran", worker="w", runtime=runtime, deterministic=True,
        artifact_sha256=found.artifact_sha256,
    )  # fmt: skip
    answered = ReplayedRow(**({"output_sha256": output_digest([new])} | row))
    differ = differences((old,), (new,)) if kept and old is not new else None
    return of_row(found, ran, answered, differ, tolerance)


def test_verdicts():
    one, near, far = tensor(1.0), tensor(1.0001), tensor(2.0)
    other = replace(RUNTIME, isa="avx512", version="2.0")
    assert verdict(one, one).verdict == "identical"
    assert verdict(one, one, runtime=other).verdict == "identical"
    assert verdict(one, near).verdict == "changed"
    assert verdict(one, near, tolerance=1e-3).verdict == "within_tolerance"
    assert verdict(one, near, tolerance=1e-3, runtime=other).verdict == "within_tolerance"
    assert verdict(one, far, tolerance=1e-3).verdict == "changed"
    assert "by 1 at most" in verdict(one, far).reason
    assert "outputs are gone" in verdict(one, near, tolerance=1e-3, kept=False).reason
    machine = verdict(one, far, runtime=other)
    assert machine.verdict == "not_reproducible"
    assert "other ISA: avx512, recorded avx2" in machine.reason
    assert "other runtime version" in machine.reason
    fails = {"output_sha256": None, "error_code": "execution_failed", "error": "no"}
    assert verdict(one, one, **fails).verdict == "changed"
    failed = {"status": "failed", "error": "execution_failed"}
    assert verdict(one, one, **failed, output_sha256=None, error_code="execution_failed").verdict == "identical"
    assert verdict(one, one, **failed).verdict == "changed"
    late = verdict(one, one, status="failed", error="run_timeout")
    assert late.verdict == "not_reproducible"


def test_a_gpu_that_was_not_told_to_compute_the_same_each_time_is_a_reason():
    cuda = replace(RUNTIME, provider="CUDAExecutionProvider")
    found = replace(receipt(1), runtime=cuda, output_sha256="ab" * 32, status="succeeded")
    ran = ReplayRan(replay_id="r", batch_id="b", attempt=1, status="ran", worker="w", runtime=cuda, deterministic=True)
    judged = of_row(found, ran, ReplayedRow(output_sha256="cd" * 32), None, 0.0)
    assert (judged.verdict, judged.reason) == ("not_reproducible", "recorded without deterministic kernels")


def test_exit_codes_and_the_page_escapes_what_strangers_wrote():
    clean, changed, partly = Summary(), Summary(), Summary()
    assert Summary().exit_code == 2
    clean.add(verdict(tensor(1.0), tensor(1.0)))
    assert clean.exit_code == 0
    bad = verdict(tensor(1.0), tensor(2.0))
    strange = replace(bad.receipt, request_id="<script>")
    bad = type(bad)(strange, bad.verdict, bad.reason, differences=bad.differences)
    changed.add(bad)
    assert changed.exit_code == 1
    partly.add(verdict(tensor(1.0), tensor(1.0)))
    partly.add(not_reproducible(receipt(2), "request_erased"))
    assert (partly.exit_code, partly.replayed, partly.reasons) == (2, 1, {"request_erased": 1})
    html = page.page({"model": "<b>"}, changed, [bad])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "1 of 1 answers changed." in html


# --------------------------------------------------------------------------- back-tests


SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("rows", 3), batch_axis=0),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("rows", 3), batch_axis=0),),
)


def pairs(old, new):
    return [
        Pair(f"r{i}", (from_numpy("y", a[None]),), (from_numpy("y", b[None]),))
        for i, (a, b) in enumerate(zip(old, new, strict=True))
    ]


def rows(count, seed=0):
    return np.random.default_rng(seed).random((count, 3)).astype(np.float32)


def test_truth_decides_where_there_is_enough_of_it():
    old, new = rows(40), rows(40, 1)
    without = compare(pairs(old, new), SIGNATURE, {})
    assert [each.metric for each in without.comparisons if each.gates] == ["agreement"]
    truth = {
        f"r{i}": ev.FeedbackGiven(model="m", request_id=f"r{i}", label=(int(row.argmax()),))
        for i, row in enumerate(new)
    }
    enough = compare(pairs(old, new), SIGNATURE, truth)
    assert [each.metric for each in enough.comparisons if each.gates] == ["accuracy"]
    assert enough.labelled_rows == 40
    few = dict(list(truth.items())[: LEAST_LABELLED - 1])
    both = compare(pairs(old, new), SIGNATURE, few)
    assert {each.metric for each in both.comparisons if each.gates} == {"accuracy", "agreement"}


def test_agreement_by_class_counts_each_class_of_the_one_that_answers():
    old = rows(30)
    new = old.copy()
    new[old.argmax(axis=1) == 2] = [1, 0, 0]
    found = compare(pairs(old, new), SIGNATURE, {}).agreement["y"]
    assert {name: share["value"] for name, share in found["by_class"].items()} == {"0": 1.0, "1": 1.0, "2": 0.0}


def test_an_output_of_another_shape_is_a_problem_and_not_compared():
    found = compare(pairs(rows(5), rows(5)[:, :2]), SIGNATURE, {})
    assert found.comparisons == []
    assert "another shape in 5 answers" in found.problems[0]


@pytest.mark.parametrize("name", ["m", "m:", "m:x", "m:1/", "m:1/a/b", "-:1"])
def test_names_of_contenders_are_checked(name):
    with pytest.raises((InvalidInput, UnknownModel)):
        contender(name, Registry())


def test_a_contender_that_is_not_there():
    with pytest.raises((UnknownModel, UnknownVersion)):
        contender("m:1", Registry())


# --------------------------------------------------------------------------- the command's words


def test_times_and_offsets_as_a_person_writes_them():
    assert milliseconds("1970-01-01T00:00:01Z") == milliseconds("1970-01-01T01:00:01+01:00") == 1000
    assert milliseconds("1970-01-02") == 86_400_000
    found = selected(Topics(), model="m", offsets=["0:5-9", "other/1:7"], requests=["a"])
    assert [(each.topic, each.partition, each.first, each.next) for each in found.offsets] == [
        ("aiaas.requests.m", 0, 5, 10),
        ("other", 1, 7, 8),
    ]
    for wrong in ({"offsets": ["0:9-5"], "model": "m"}, {"offsets": ["0:1"]}, {"offsets": ["x"], "model": "m"}):
        with pytest.raises(InvalidInput):
            selected(Topics(), **wrong)
    for wrong in ({"from_": "yesterday"}, {"from_": "2026-01-02", "to": "2026-01-01"}):
        with pytest.raises(InvalidInput):
            selected(Topics(), **wrong)


def test_the_documents_name_what_the_code_says():
    text = (Path(__file__).parents[2] / "docs" / "replay.md").read_text()
    for name in ("identical", "within_tolerance", "changed", "not_reproducible", "batch_incomplete", "digest_mismatch"):
        assert f"`{name}`" in text


async def test_a_version_runs_as_it_was_configured_when_the_request_was_routed():
    eight, four = RuntimeConfig(max_batch_size=8), RuntimeConfig(max_batch_size=4)
    log = log_of(
        uploaded(),
        *made_ready(),
        ev.RuntimeConfigured(model="m", version=1, config=eight),
        ev.ModelPromoted(model="m", version=1),
        ev.RuntimeConfigured(model="m", version=1, config=four),
    )

    async def entries():
        for entry in log:
            yield entry

    found = await Configurations.read(entries())
    assert [found.at("m", 1, offset) for offset in (0, 3, 4, 5, 6, 99)] == [None, None, eight, eight, four, four]
    assert found.at("m", 2, 99) is None
