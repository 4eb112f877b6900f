"""A histogram of durations with fixed bounds, and what can be told from one.

Three bounds to a decade (1, 2, 5) from 50 µs to 100 s: the bounds never change with the data, so histograms of
instances, windows and restarts add up exactly. Counts and the sum are integers, so the order of observations does not
matter to the last bit. A quantile is interpolated within its bucket, as Prometheus' `histogram_quantile` does it, and
so is off by at most the bucket's width (a factor of 2 to 2.5).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BOUNDS_NS: tuple[int, ...] = (
    50_000,
    *(digit * 10**exponent for exponent in range(5, 11) for digit in (1, 2, 5)),
    100 * 10**9,
)
"""Inclusive upper bounds, in nanoseconds. One more bucket, without a bound, follows the last."""
BOUNDS_S: tuple[float, ...] = tuple(bound / 1e9 for bound in BOUNDS_NS)


@dataclass(slots=True)
class Histogram:
    """Observations by bucket (not cumulative), and their sum in nanoseconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_NS) + 1))
    sum_ns: int = 0

    def observe(self, durations_ns: Sequence[int]) -> None:
        """Count durations. A negative one, from a clock that went backwards, counts as zero."""
        ordered = sorted(durations_ns)  # so only the first of a bucket has to look for it
        self.sum_ns += sum(ordered[bisect_left(ordered, 0) :])
        begin = 0
        while begin < len(ordered):
            bucket = bisect_left(BOUNDS_NS, ordered[begin])
            end = bisect_right(ordered, BOUNDS_NS[bucket]) if bucket < len(BOUNDS_NS) else len(ordered)
            self.counts[bucket] += end - begin
            begin = end

    @property
    def count(self) -> int:
        """How many durations were observed."""
        return sum(self.counts)

    def quantile_s(self, q: float) -> float | None:
        """The `q`-quantile (0 to 1) in seconds; None without observations, the last bound if it lies beyond it."""
        rank, below = q * self.count, 0
        if not self.count:
            return None
        for (lower_s, upper_s), count in zip(pairwise((0.0, *BOUNDS_S)), self.counts, strict=False):
            if count and below + count >= rank:
                return lower_s + (upper_s - lower_s) * max(rank - below, 0) / count
            below += count
        return BOUNDS_S[-1]

    def cumulative(self) -> list[tuple[str, int]]:
        """Prometheus buckets: how many took at most this many seconds."""
        total, buckets = 0, []
        for bound, count in zip((*BOUNDS_S, float("inf")), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), total))
        return buckets
