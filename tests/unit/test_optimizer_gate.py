"""The gate: what passes, what serves, and the sentence that says why."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from services.optimizer import elsewhere
from services.optimizer.gate import decide, worth_measuring
from services.optimizer.messages import Found, OnClass, Served
from services.optimizer.settings import OptimizerSettings
from shared.events import Latency, MachineClass, Measurements
from shared.heartbeat_events import Heartbeat
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


def candidate(variant=INT8, agreement=1.0, cosine=None, slow=None, batch_cap=1, **measured):
    found = {"agreement": agreement, "cosine": cosine}
    fields = {"row_independent": True, "speedup": 1.21, "throughput_rows_s": 100.0, "byte_size": 90, **measured}
    latencies = tuple(Latency(batch_size=size, p50_s=1.0, reference_s=ratio) for size, ratio in (slow or {}).items())
    return Found(
        step=variant,
        batch_cap=batch_cap,
        signature=SIGNATURE,
        measurements=Measurements(latencies=latencies, **fields),
        comparisons=tuple(share(value, metric) for metric, value in found.items() if value is not None),
    )


FP32 = candidate("fp32", speedup=1.0, throughput_rows_s=80.0, byte_size=100)
POLICY = OptimizerSettings().policy


OTHER = MachineClass(isa="avx2", providers=("CPUExecutionProvider",), threads=8)
OWN = MachineClass(isa="avx512", providers=("CPUExecutionProvider",), threads=1)


def decided(*candidates, failed=None, reference=FP32, served=None, **policy):
    return decide(reference, candidates, failed or {}, Policy(**policy).over(POLICY), served or Served())


def took(ratio, sizes=(1, 8, 32)):
    """So many times faster than fp32."""
    return tuple(Latency(batch_size=size, p50_s=0.001 * size, reference_s=0.001 * size * ratio) for size in sizes)


def there(ratio=None, *, here=False, **fields):
    latencies = {} if ratio is None else {INT8: took(ratio)}
    return Served(here=here, classes=(OnClass(machine=OTHER, worker="w/1", latencies=latencies, **fields),))


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


# --------------------------------------------------------------------------- where it would serve


def test_it_is_judged_by_the_class_that_serves():
    slow_here = candidate(speedup=0.5, slow={1: 0.5, 8: 0.5, 32: 0.5})
    decision = decided(slow_here, served=there(3.0))
    assert decision.chosen == INT8
    assert decision.reason == f"{INT8}: 3.00x on avx2, CPU, 8 threads at agreement 1.00000"


def test_it_has_to_be_no_slower_on_any_class_that_serves():
    fast_here = candidate(speedup=3.0, slow={1: 3.0})
    decision = decided(fast_here, served=there(0.8, here=True))
    assert decision.chosen == "fp32"
    assert "slower than fp32 at batch size 1 on avx2, CPU, 8 threads: 0.80x" in decision.rejected[INT8]
    slow_here = candidate(speedup=0.8, slow={8: 0.8})
    assert "slower than fp32 at batch size 8: 0.80x" in decided(slow_here, served=there(3.0, here=True)).rejected[INT8]


def test_of_several_classes_that_which_gains_least_counts():
    decision = decided(candidate(speedup=3.0, slow={1: 3.0}), served=there(1.02, here=True))
    assert decision.chosen == "fp32"
    assert "gains less than 1.05x (latency 1.02x" in decision.kept[INT8]


def test_what_does_not_run_where_it_would_serve_is_out():
    decision = decided(candidate(), served=there(problems={INT8: "it does not load"}))
    assert decision.rejected[INT8].startswith("on avx2, CPU, 8 threads it does not run: it does not load")


def test_without_an_answer_what_was_measured_here_counts_and_that_is_said():
    decision = decided(candidate(), served=there(failed="w/1: no answer within 60 s"))
    assert decision.chosen == INT8
    assert decision.reason.endswith("; not measured on avx2, CPU, 8 threads: w/1: no answer within 60 s")


def test_throughput_is_that_of_the_class_that_serves():
    one = candidate(throughput_rows_s=1.0, batch_cap=32)
    decision = decided(one, served=there(2.0), objective="throughput")
    assert decision.chosen == INT8
    assert "throughput 2.00x" in decision.kept[INT8]


def test_only_what_passes_on_all_else_is_worth_measuring_elsewhere():
    wrong, dependent = candidate("wrong", agreement=0.5), candidate("dependent", row_independent=False)
    slow = candidate("slow", slow={1: 0.1})
    assert worth_measuring(FP32, [wrong, dependent, slow, candidate()], POLICY) == ["slow", INT8]


def beat(instance, machine, service="worker"):
    return Heartbeat(
        instance=instance, incarnation="1", service=service, machine=machine, registry_offset=0, interval_s=2.0
    )


def test_the_classes_of_live_workers():
    alive = [beat("w1", OTHER), beat("w2", OTHER), beat("o2", OTHER, "optimizer")]
    assert elsewhere.classes(alive, OWN) == ((OTHER,), False)
    assert elsewhere.classes([*alive, beat("w3", OWN)], OWN) == ((OTHER,), True)
    assert elsewhere.classes([beat("o1", OWN, "optimizer")], OWN) == ((), False)
    many = [beat(f"w{threads}", replace(OTHER, threads=threads + 10)) for threads in range(10)]
    found, _ = elsewhere.classes([*many, beat("w10", many[9].machine)], OWN)
    assert (found[0], len(found)) == (many[9].machine, elsewhere.MAX_CLASSES)
