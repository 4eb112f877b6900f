"""The gate: what passes, what serves, and the sentence that says why."""

from __future__ import annotations

import pytest

from services.optimizer.gate import Policy, decide
from services.optimizer.messages import Candidate
from shared.events import Measurements
from shared.signature import Signature

SIGNATURE = Signature(inputs=(), outputs=())
INT8 = "int8-weight-only"


def candidate(variant=INT8, **measured):
    fields = {"cosine": 0.99996, "top1_agreement": 1.0, "row_independent": True, "speedup": 1.21, **measured}
    return Candidate(variant=variant, signature=SIGNATURE, batch_cap=1, measurements=Measurements(**fields))


FP32 = candidate("fp32", cosine=1.0, top1_agreement=None, speedup=1.0)


def decided(*candidates, failed=None, reference=FP32):
    return decide(reference, candidates, failed or {}, Policy())


def test_a_faster_one_that_is_close_serves():
    decision = decided(candidate())
    assert decision.chosen == INT8
    assert decision.reason == "int8-weight-only: 1.21x at cosine 0.99996 and top-1 agreement 1.00000"
    assert decision.rejected == {}


@pytest.mark.parametrize(
    ("measured", "why"),
    [
        ({"speedup": 0.93}, "0.93x is below 1.05x (0.93x at cosine 0.99996 and top-1 agreement 1.00000)"),
        ({"speedup": 1.0499}, "1.05x is below"),
        ({"speedup": None}, "unknown speed is below 1.05x"),
        ({"cosine": 0.734}, "cosine 0.73400 is below 0.999"),
        ({"top1_agreement": 0.95}, "top-1 agreement 0.95000 is below 0.99"),
        ({"row_independent": False}, "its answers depend on the rows beside them, those of fp32 do not"),
        ({"cosine": None, "top1_agreement": None}, "its answers could not be compared with those of fp32"),
    ],
)
def test_what_does_not_pass_is_rejected_with_its_figures(measured, why):
    decision = decided(candidate(**measured))
    assert decision.chosen == "fp32"
    assert why in decision.rejected[INT8]
    assert decision.reason == f"fp32: int8-weight-only: {decision.rejected[INT8]}"


def test_labels_alone_can_pass():
    assert decided(candidate(cosine=None, top1_agreement=1.0)).chosen == INT8


def test_a_model_that_is_not_independent_itself_asks_no_more_of_a_candidate():
    reference = candidate("fp32", row_independent=False, speedup=1.0)
    assert decided(candidate(row_independent=False), reference=reference).chosen == INT8


def test_what_did_not_build_is_told():
    decision = decided(failed={INT8: "the model has no MatMul"})
    assert decision.reason == "fp32: int8-weight-only: the model has no MatMul"
    assert decided().reason == "fp32: there was no other candidate"
