"""What follows from the counts: bottleneck, saturation, capacity, cost, service levels, trends. Pure.

**Capacity** takes the best rate at which runs of one size went, on as many devices as hold the model, for the rate of a
single server with exponential times (M/M/1): there a request waits longer than t with probability
rho·exp(-(mu - lambda)·t). It is the rate at which so many as the service level allows wait longer than what it leaves
beside the computing. An estimate: batching makes reality better, bursts make it worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.monitor.tally import Tally

_LEAST_RUNS: Final = 3
_LEAST_POINTS: Final = 3
_STEPS: Final = 60
_HOUR_S: Final = 3600


@dataclass(frozen=True)
class Slo:
    """What callers were promised: `latency_target` of them an answer within `latency_s`, `availability` a result."""

    latency_s: float = 0.5
    latency_target: float = 0.99
    availability: float = 0.999


@dataclass(frozen=True)
class Met:
    """How the promise was kept. The budget is the share of errors that it allows."""

    latency_met: float | None
    availability: float | None
    error_budget: float
    error_budget_spent: float | None
    """Share of the budget that the errors of these requests are; above 1 it is broken."""


def bottleneck(tally: Tally) -> tuple[str, float] | None:
    """What takes most of a request's time (`queue`, `compute` or `reply`), and its share of it."""
    parts = {
        "queue": tally.sum("queue_ns"),
        "compute": tally.sum("compute_input_ns") + tally.sum("compute_infer_ns"),
        "reply": tally.sum("compute_output_ns"),
    }
    total = sum(parts.values())
    if not total:
        return None
    most = max(parts, key=parts.__getitem__)
    return most, parts[most] / total


def service_rate(tally: Tally) -> float | None:
    """Requests a second that one device can do, at the run size at which rows went fastest; None without runs."""
    beside_s = sum(tally.mean_s(phase) or 0.0 for phase in ("compute_input", "compute_output"))
    rates = [
        size * count / (seconds + beside_s * count)
        for size, (count, seconds) in tally.runs.items()
        if count >= _LEAST_RUNS and seconds > 0
    ]
    rows, requests = tally.sum("rows"), tally.of("batch").total()
    return max(rates) * requests / rows if rates and rows else None


def capacity(tally: Tally, devices: int, slo: Slo) -> float | None:
    """Requests a second up to which the latency of `slo` holds; None where too few runs are known."""
    rate = service_rate(tally)
    if rate is None or devices < 1:
        return None
    rate *= devices
    computing_s = sum(tally.mean_s(phase) or 0.0 for phase in ("compute_input", "compute_infer", "compute_output"))
    left_s = slo.latency_s - computing_s
    if left_s <= 0:
        return 0.0
    low, high = 0.0, rate
    for _ in range(_STEPS):
        tried = (low + high) / 2
        late = tried / rate * math.exp(-(rate - tried) * left_s)
        low, high = (tried, high) if late <= 1 - slo.latency_target else (low, tried)
    return low


def saturation(tally: Tally, seconds: float, devices: int) -> float | None:
    """The share of the devices' time in which the model ran."""
    return tally.run_s / (seconds * devices) if devices and seconds > 0 else None


def levels(tally: Tally, slo: Slo) -> Met:
    """How a service level was met."""
    ratio = tally.error_ratio
    budget = 1 - slo.availability
    return Met(
        latency_met=tally.within(slo.latency_s),
        availability=None if ratio is None else 1 - ratio,
        error_budget=budget,
        error_budget_spent=None if ratio is None or not budget else ratio / budget,
    )


def cost_per_1000(tally: Tally, cpu_core_s: float, gpu_s: float, prices: tuple[float, float]) -> float | None:
    """What a thousand requests cost, for the seconds of cores and GPUs that are theirs, at `prices` an hour."""
    if not tally.requests:
        return None
    return (cpu_core_s * prices[0] + gpu_s * prices[1]) / _HOUR_S / tally.requests * 1000


def trend_per_hour(points: Sequence[tuple[float, float | None]]) -> float | None:
    """How much a value grows in an hour, by least squares over `(second, value)`; None for too few."""
    there = [(at, value) for at, value in points if value is not None]
    if len(there) < _LEAST_POINTS:
        return None
    mean_at = sum(at for at, _ in there) / len(there)
    mean = sum(value for _, value in there) / len(there)
    spread = sum((at - mean_at) ** 2 for at, _ in there)
    return sum((at - mean_at) * (value - mean) for at, value in there) / spread * _HOUR_S if spread else None


def anomaly(past: Sequence[float], value: float) -> float:
    """How many robust standard deviations a value lies above the median of the past, which varies by 5% at least."""
    ordered = sorted(past)
    if len(ordered) < 2 * _LEAST_POINTS:
        return 0.0
    median = ordered[len(ordered) // 2]
    deviations = sorted(abs(each - median) for each in ordered)
    spread = 1.4826 * deviations[len(deviations) // 2] + 0.05 * abs(median)
    return (value - median) / spread if spread else 0.0
