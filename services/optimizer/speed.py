"""How much faster than fp32 a candidate is, on each class of worker that it is judged on. Pure.

Those are the classes that would serve it and were measured; the optimizer's own, if workers of it are up, or if nothing
is known of any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.optimizer.messages import Found, Served
    from shared.events import Latency

HERE: Final = "here"
"""The optimizer's own class."""


@dataclass(frozen=True)
class Speed:
    """On one class: how many times faster by batch size, in the geometric mean, and in rows a second at best."""

    ratios: Mapping[int, float]
    speedup: float
    throughput: float


def by_class(candidate: Found, served: Served) -> dict[str, Speed]:
    """Of a candidate, by class; empty if it was measured on none of them."""
    found = {}
    for each in served.classes:
        speed = _speed(each.latencies.get(candidate.step, ()), candidate)
        if not each.failed and speed is not None:
            found[str(each.machine)] = speed
    measured = candidate.measurements
    if (served.here or not found) and measured is not None:
        own = _speed(measured.latencies, candidate)
        speedup = measured.speedup or (own.speedup if own else 0.0)
        found[HERE] = Speed(own.ratios if own else {}, speedup, own.throughput if own else 1.0)
    return found


def _speed(latencies: Sequence[Latency], candidate: Found) -> Speed | None:
    pairs = {each.batch_size: (each.reference_s, each.p50_s) for each in latencies}
    ratios = {size: before / after for size, (before, after) in pairs.items() if before and after > 0}
    if not ratios:
        return None
    most = max(candidate.batch_cap, 1)
    before = max(size / pairs[size][0] for size in ratios if pairs[size][0])  # type: ignore[operator] # seen above
    after = max((size / pairs[size][1] for size in ratios if size <= most), default=0.0)
    return Speed(ratios, math.exp(sum(map(math.log, ratios.values())) / len(ratios)), after / before)
