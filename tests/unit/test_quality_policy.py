"""Policies: verdicts, the Pareto set, and the choice, whose rules hold for any figures."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.quality.compare import labelled, unlabelled
from shared.quality.estimates import Comparison, Estimate
from shared.quality.policy import Figures, Policy, choose, gain, largest_loss, pareto, problem, verdict

FP32 = Figures(variant="fp32", loss=0.0, latency_s=1.0, rows_per_s=10.0, size_bytes=1000, memory_bytes=5000)
OBJECTIVES = ("latency", "throughput", "size", "memory")


def estimate(value, low, high):
    return Estimate(value=value, low=low, high=high, method="bootstrap")


def comparison(loss, metric="accuracy", *, gates=True):
    found = estimate(0.5, 0.4, 0.6)
    return Comparison(output="y", metric=metric, rows=100, candidate=found, reference=found, loss=loss, gates=gates)


SMALL = st.sampled_from([1, 2, 3, 5, 8])  # so that equals come up
FIGURES = st.builds(
    Figures,
    variant=st.just(""),
    loss=SMALL.map(lambda number: number / 100),
    latency_s=SMALL.map(float),
    rows_per_s=SMALL.map(float),
    size_bytes=SMALL,
    memory_bytes=st.none() | SMALL,
)
CANDIDATES = st.lists(FIGURES, max_size=8).map(
    lambda drawn: [replace(each, variant=f"v{index}") for index, each in enumerate(drawn)]
)


class TestVerdict:
    @pytest.mark.parametrize(
        ("loss", "expected"),
        [
            (estimate(0.0, -0.01, 0.01), "within"),
            (estimate(0.0, -0.02, 0.011), "open"),
            (estimate(0.02, 0.01, 0.03), "open"),
            (estimate(0.02, 0.011, 0.03), "beyond"),
        ],
    )
    def test_by_the_interval(self, loss, expected):
        assert verdict(loss, 0.01) == expected

    @given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
    def test_allowing_more_never_turns_it_down(self, value, below, above, allowed):
        order = ("beyond", "open", "within")
        loss = estimate(value, value - below, value + above)
        assert order.index(verdict(loss, allowed)) <= order.index(verdict(loss, allowed + 0.1))


class TestProblem:
    def test_none(self):
        assert problem([comparison(estimate(0.0, -0.001, 0.001))], Policy()) is None

    def test_an_open_question_is_decided_as_the_policy_says(self):
        doubtful = [comparison(estimate(0.005, -0.01, 0.02))]
        assert problem(doubtful, Policy()) is None
        assert "not for sure within 0.01" in problem(doubtful, Policy(proof="interval"))
        assert "not within 0.01" in problem([comparison(estimate(0.015, -0.01, 0.04))], Policy())

    def test_each_metric_has_its_allowance(self):
        drifted = [comparison(estimate(0.005, 0.004, 0.006), "cosine")]
        assert "cosine of 'y'" in problem(drifted, Policy())
        assert problem(drifted, Policy(allowed_drift=0.01)) is None

    def test_one_bad_output_is_enough(self):
        good, bad = (comparison(estimate(value, value, value)) for value in (0.0, 0.5))
        assert problem([good, bad], Policy()) is not None
        assert largest_loss([good, bad]) == 0.5

    def test_what_does_not_gate_is_not_looked_at(self):
        assert "could not be compared" in problem([comparison(estimate(0, 0, 0), gates=False)], Policy())
        assert largest_loss([]) == 0.0

    def test_from_answers(self):
        scores = np.random.default_rng(0).standard_normal((500, 10))
        for compared in (
            unlabelled("y", scores, scores + 1e-6),
            labelled("y", scores, scores + 1e-6, scores.argmax(axis=1)),
        ):
            assert problem(compared, Policy()) is None
            assert problem(compared, Policy(proof="interval")) is None
        assert problem(unlabelled("y", scores, scores[::-1]), Policy()) is not None


class TestPareto:
    @given(CANDIDATES)
    def test_what_is_left_out_is_beaten_by_what_is_kept(self, figures):
        kept = pareto(figures)
        for each in figures:
            assert each in kept or any(self.beats(other, each) for other in kept)
        assert not any(self.beats(other, each) for each in kept for other in figures)

    @given(CANDIDATES)
    def test_once_more_changes_nothing_and_order_does_not_matter(self, figures):
        kept = pareto(figures)
        assert pareto(kept) == kept
        assert set(pareto(figures[::-1])) == set(kept)

    def beats(self, one, other):
        """Written out again, by each figure."""
        memory = [each.memory_bytes or float("inf") for each in (one, other)]
        pairs = [
            (one.loss, other.loss),
            (one.latency_s, other.latency_s),
            (-one.rows_per_s, -other.rows_per_s),
            (one.size_bytes, other.size_bytes),
            tuple(memory),
        ]
        return all(left <= right for left, right in pairs) and any(left < right for left, right in pairs)


class TestChoice:
    @given(CANDIDATES, st.sets(st.sampled_from([f"v{index}" for index in range(8)])), st.sampled_from(OBJECTIVES))
    def test_its_rules(self, candidates, out, objective):
        policy = Policy(objective=objective)
        choice = choose(FP32, candidates, dict.fromkeys(out, "bad"), policy)
        known = {each.variant: each for each in [FP32, *candidates]}
        assert choice.chosen in choice.pareto
        assert choice.chosen not in out
        assert set(choice.reasons) == known.keys() | out
        gains = {each.variant: gain(FP32, each, objective) for each in candidates if each.variant not in out}
        if choice.chosen == "fp32":
            assert all(each < policy.min_gain for each in gains.values())
        else:
            assert gains[choice.chosen] == max(gains.values()) >= policy.min_gain

    def test_of_equals_the_one_that_loses_less(self):
        first = replace(FP32, variant="first", latency_s=0.5, loss=0.005, size_bytes=1)
        second = replace(FP32, variant="second", latency_s=0.5, loss=0.004, size_bytes=2)
        choice = choose(FP32, [first, second], {}, Policy())
        assert choice.chosen == "second"
        assert "second is better" in choice.reasons["first"]

    def test_too_little_is_not_worth_it(self):
        choice = choose(FP32, [replace(FP32, variant="slow", latency_s=0.97, loss=0.001)], {}, Policy())
        assert choice.chosen == "fp32"
        assert "gains less than 1.05x (latency 1.03x" in choice.reasons["slow"]

    def test_reasons_of_what_was_not_built_are_kept(self):
        choice = choose(FP32, [], {"int8-static": "no rows"}, Policy())
        assert (choice.chosen, choice.reasons["int8-static"]) == ("fp32", "no rows")

    def test_memory_that_was_not_measured_wins_nothing(self):
        unknown = replace(FP32, variant="unknown", memory_bytes=None, latency_s=0.1)
        assert choose(FP32, [unknown], {}, Policy(objective="memory")).chosen == "fp32"


class TestPolicy:
    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"allowed_loss": -0.1}, "allowed_loss"),
            ({"allowed_drift": 2}, "allowed_drift"),
            ({"objective": "beauty"}, "objective"),
            ({"budget_s": 0}, "budget_s"),
            ({"min_gain": 0.5}, "min_gain"),
            ({"candidates": []}, "at least one"),
            ({"candidates": ["fp16", "fp16"]}, "each one once"),
            ({"candidates": ["../fp16"]}, "candidates"),
            ({"unknown": 1}, "unknown"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, fields, why):
        with pytest.raises(msgspec.ValidationError, match=why):
            msgspec.convert(fields, Policy)

    def test_it_travels(self):
        policy = Policy(objective="size", candidates=("int8-static", "fp16"))
        assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy
