"""Alerts and analysis: hysteresis that does not tremble, and figures that follow from the counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.monitor import analysis, findings
from services.monitor.alerts import Alerts, Finding, Rule
from services.monitor.analysis import Slo
from services.monitor.queries import Happening
from services.monitor.sketch import buckets
from services.monitor.tally import Tally
from services.monitor.timeline import overloads

RULE = Rule("r", "warning", raises_above=10, clears_below=5, for_s=3, text="")


def judged(values, rule=RULE):
    """When an alert was raised and cleared, of a value each second."""
    alerts, changes = Alerts(), []
    for second, value in enumerate(values):
        found = [] if value is None else [Finding(value, "", model="m")]
        changes += [(second, change.raised) for change in alerts.judge(rule, found, float(second + 1))]
    return changes


def test_it_is_raised_after_a_while_and_cleared_after_a_while():
    assert judged([11, 11, 11, 11, 11, 4, 4, 4, 4]) == [(3, True), (8, False)]


def test_a_value_between_the_thresholds_changes_nothing():
    assert judged([7] * 10) == []
    assert judged([11] * 4 + [7] * 10) == [(3, True)]
    assert judged([11] * 4 + [4, 4, 7, 4, 4, 4, 7]) == [(3, True)]


def test_a_peak_raises_nothing_and_what_is_not_found_is_low():
    assert judged([11, 11, 4, 11, 11, 4]) == []
    assert judged([11] * 4 + [None] * 4) == [(3, True), (7, False)]


@given(st.lists(st.floats(0, 20), max_size=60))
def test_raised_and_cleared_take_turns(values):
    changes = judged(values)
    assert [raised for _, raised in changes] == [number % 2 == 0 for number in range(len(changes))]
    for second, raised in changes:
        last = values[max(second - 3, 0) : second + 1]
        assert all(value > 10 for value in last) if raised else all(value < 5 for value in last)


def tally(*, requests=100, failed=0, queue_ns=10**6, run_ns=10**6, size=4, output_ns=1000):
    found = Tally()
    found.add("outcome/succeeded", 0, requests - failed)
    found.add("outcome/failed", 0, failed)
    for phase, spent in {"queue": queue_ns, "compute_infer": run_ns, "compute_output": output_ns}.items():
        found.add(f"{phase}_ns", 0, spent * requests)
        found.add(phase, int(buckets(spent)), requests)
    found.add("total", int(buckets(queue_ns + run_ns + output_ns)), requests)
    found.add("batch", size, requests)
    found.add("rows", 0, requests)
    found.add("run", size, requests // size)
    found.add("run_ns", size, run_ns * (requests // size))
    return found


def test_the_bottleneck_is_what_takes_most():
    assert analysis.bottleneck(tally(queue_ns=10**7))[0] == "queue"
    assert analysis.bottleneck(tally(run_ns=10**8))[0] == "compute"
    assert analysis.bottleneck(tally(output_ns=10**9))[0] == "reply"
    assert analysis.bottleneck(Tally()) is None


@given(st.integers(10**5, 10**8), st.integers(1, 8), st.floats(0.001, 10))
def test_capacity_is_below_the_service_rate_and_grows_with_devices_and_patience(run_ns, size, latency_s):
    held = tally(run_ns=run_ns, size=size)
    slo = Slo(latency_s=latency_s)
    found = analysis.capacity(held, 1, slo)
    rate = analysis.service_rate(held)
    assert rate == pytest.approx(size * 1e9 / (run_ns + 1000), rel=1e-6)
    assert 0 <= found <= rate
    assert analysis.capacity(held, 2, slo) >= found
    assert analysis.capacity(held, 1, Slo(latency_s=2 * latency_s)) >= found


def test_capacity_is_where_the_promise_breaks():
    held, slo = tally(run_ns=10**7, size=1), Slo(latency_s=0.1, latency_target=0.99)
    found, rate = analysis.capacity(held, 1, slo), analysis.service_rate(held)
    left_s = slo.latency_s - 0.01 - 1e-6
    assert found / rate * math.exp(-(rate - found) * left_s) == pytest.approx(0.01, rel=1e-3)
    assert analysis.capacity(held, 1, Slo(latency_s=0.001)) == 0
    assert analysis.capacity(Tally(), 1, slo) is None


def test_levels_and_cost():
    met = analysis.levels(tally(requests=1000, failed=2), Slo(latency_s=0.5, availability=0.999))
    assert met.availability == pytest.approx(0.998)
    assert met.error_budget_spent == pytest.approx(2.0)
    assert met.latency_met == 1.0
    assert analysis.cost_per_1000(tally(requests=1000), 3600, 0, (0.04, 2.5)) == pytest.approx(0.04)
    assert analysis.cost_per_1000(tally(requests=2000), 0, 3600, (0.04, 2.5)) == pytest.approx(1.25)
    assert analysis.cost_per_1000(Tally(), 1, 1, (1, 1)) is None


@given(st.floats(-100, 100), st.floats(-5, 5))
def test_a_trend_is_the_slope(start, slope):
    points = [(at, start + slope * at / 3600) for at in range(0, 3600, 60)]
    assert analysis.trend_per_hour(points) == pytest.approx(slope, abs=1e-6)
    assert analysis.trend_per_hour(points[:2]) is None


def test_an_anomaly_is_far_above_the_past():
    past = [0.010, 0.011, 0.009, 0.010, 0.012, 0.010, 0.010]
    assert analysis.anomaly(past, 0.011) < 2
    assert analysis.anomaly(past, 0.1) > 8
    assert analysis.anomaly(past[:3], 0.1) == 0


def test_few_requests_find_nothing():
    tallies = {("m", 1): tally(requests=10, failed=10), ("m", 2): tally(requests=100, failed=50)}
    [found] = findings.errors(tallies)
    assert (found.version, found.value) == (2, 0.5)
    slow = tally(queue_ns=10**9)
    [late] = findings.latency_slo({("m", 1): slow}, {"m": Slo(latency_s=0.5, latency_target=0.9)})
    assert late.value == pytest.approx(0.9)


def test_refusals_close_to_each_other_are_one_overload():
    windows = {at: Tally() for at in range(0, 200, 10)}
    for at, refused in {20: 5, 30: 7, 50: 1, 150: 2}.items():
        windows[at].add("http/503", 0, refused)
    assert overloads(windows, 10) == [
        Happening(20, "overload", "overload: 13 requests were refused within 40 s"),
        Happening(150, "overload", "overload: 2 requests were refused within 10 s"),
    ]
