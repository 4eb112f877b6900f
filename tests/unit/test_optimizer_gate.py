"""The gate: what passes, what serves, and the sentence that says why."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from services.optimizer.gate import decide
from services.optimizer.messages import Found
from services.optimizer.settings import OptimizerSettings
from shared.events import Latency, Measurements
from shared.optimization import Policy
from shared.quality.estimates import Comparison, Estimate
from shared.signature import Signature

SIGNATURE = Signature(inputs=(), outputs=())
INT8 = "int8-weight-only"


def share(value, metric):
    estimate = Estimate(value=value, low=value - 0.0001, high=value + 0.0001, method="wilson")
    loss = replace(estimate, value=1 - value, low=1 - estimate.high, high=1 - estimate.low)
    about = {"output": "y", "rows": 256, "reference": None, "gates": True}
    return Comparison(metric=metric, candidate=estimate, loss=loss, **about)


def candidate(variant=INT8, agreement=1.0, cosine=None, slow=None, **measured):
    found = {"agreement": agreement, "cosine": cosine}
    fields = {"row_independent": True, "speedup": 1.21, "throughput_rows_s": 100.0, "byte_size": 90, **measured}
    latencies = tuple(Latency(batch_size=size, p50_s=1.0, reference_s=ratio) for size, ratio in (slow or {}).items())
    return Found(
        step=variant,
        signature=SIGNATURE,
        measurements=Measurements(latencies=latencies, **fields),
        comparisons=tuple(share(value, metric) for metric, value in found.items() if value is not None),
    )


FP32 = candidate("fp32", speedup=1.0, throughput_rows_s=80.0, byte_size=100)
POLICY = OptimizerSettings().policy


def decided(*candidates, failed=None, reference=FP32, **policy):
    return decide(reference, candidates, failed or {}, Policy(**policy).over(POLICY))


def test_a_faster_one_that_is_close_serves():
    decision = decided(candidate())
    assert decision.chosen == INT8
    assert decision.reason == "int8-weight-only: 1.21x at agreement 1.00000"
    assert decision.rejected == {}
    assert set(decision.kept) == {INT8, "fp32"}


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"speedup": 0.93, "throughput_rows_s": 70.0, "byte_size": 100}, "another is as good in everything"),
        ({"agreement": 0.95}, "its loss in agreement of 'y' is 0.05000"),
        ({"agreement": None, "cosine": 0.734}, "its loss in cosine of 'y' is 0.26600"),
        ({"row_independent": False}, "its answers depend on the rows beside them, those of fp32 do not"),
        ({"slow": {1: 1.5, 8: 0.9}}, "it is slower than fp32 at batch size 8: 0.90x"),
        ({"agreement": None}, "its answers could not be compared with those of the reference"),
    ],
)
def test_what_does_not_pass_is_rejected_with_its_figures(about, why):
    decision = decided(candidate(**about))
    assert decision.chosen == "fp32"
    assert why in decision.rejected[INT8]
    assert decision.reason == f"fp32: {INT8}: {decision.rejected[INT8]}"


def test_what_is_smaller_and_not_faster_is_kept_and_does_not_serve():
    decision = decided(candidate(speedup=1.01, byte_size=25))
    assert decision.chosen == "fp32"
    assert "gains less than 1.05x" in decision.kept[INT8]


def test_a_model_that_is_not_independent_itself_asks_no_more_of_a_candidate():
    reference = replace(FP32, measurements=replace(FP32.measurements, row_independent=False))
    assert decided(candidate(row_independent=False), reference=reference).chosen == INT8


def test_what_did_not_build_is_told():
    decision = decided(failed={INT8: "the model has no MatMul"})
    assert decision.reason == "fp32: int8-weight-only: the model has no MatMul"
    assert decided().reason == "fp32: there was no other candidate"


def test_the_best_by_the_objective_of_the_pareto_set_serves():
    fast = candidate("a-fast", speedup=3.0, throughput_rows_s=300.0, byte_size=50)
    wide = candidate("a-wide", speedup=2.0, throughput_rows_s=600.0, byte_size=50)
    small = candidate("a-small", speedup=1.5, throughput_rows_s=200.0, byte_size=10)
    beaten = candidate("a-beaten", speedup=2.9, throughput_rows_s=290.0, byte_size=50)
    for objective, best in (("latency", "a-fast"), ("throughput", "a-wide"), ("size", "a-small")):
        decision = decided(fast, wide, small, beaten, objective=objective)
        assert decision.chosen == best
        assert list(decision.rejected) == ["a-beaten"]
        assert {"a-fast", "a-wide", "a-small"} <= set(decision.kept)
    assert decision.rejected["a-beaten"].startswith("another is as good in everything and better in something")


@pytest.mark.parametrize(
    ("lost", "proof", "passes"),
    [(0.0, "estimate", True), (0.01, "estimate", True), (0.02, "estimate", False), (0.01, "interval", False)],
)
def test_the_measured_loss_decides_or_all_of_its_interval(lost, proof, passes):
    decision = decided(candidate(agreement=1 - lost), proof=proof, max_loss=0.01005)
    assert (INT8 not in decision.rejected) == passes
