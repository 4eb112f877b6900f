"""Sketches of durations: DDSketch, whose quantiles are off by at most 1% of themselves.

C. Masson, J. E. Rim, H. K. Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
guarantees", VLDB 2019 (https://arxiv.org/abs/1908.10693); mapping and quantile are the library's. A sketch is how
many durations fell into each bucket. Buckets never depend on what was seen, so sketches of windows, instances and
restarts add up by adding integers, in any order, to the same sketch. That is what makes them rows of a table: see
`services.monitor.recorder`. Only the bucket of many durations at once is found here, with numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from ddsketch import DDSketch
from ddsketch.mapping import LogarithmicMapping

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

ACCURACY: Final = 0.01
"""A quantile is within this share of a value that is at that rank."""
ZERO: Final = -1
"""The bucket of no time at all; others begin at 0, since a duration is at least a nanosecond."""
MOST_NS: Final = 2**50
"""Longer ones, 13 days, count as this long."""
_MAPPING = LogarithmicMapping(ACCURACY)
_PER_DOUBLING: Final = float(_MAPPING._multiplier)  # noqa: SLF001 - buckets in a factor of two; tests hold `buckets` to the library's


def buckets(durations_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bucket of each duration (int64, any shape), as the library's mapping has it."""
    held = np.clip(durations_ns, 1, MOST_NS)
    keys = np.ceil(np.log2(held.astype(np.float64)) * _PER_DOUBLING).astype(np.int64)
    return np.where(durations_ns <= 0, ZERO, keys)


def quantiles_s(counts: Mapping[int, int], shares: tuple[float, ...]) -> list[float | None]:
    """The quantiles (each 0 to 1) in seconds, of as many durations in each bucket; None without any."""
    sketch = DDSketch(ACCURACY)
    for bucket, count in sorted(counts.items()):
        sketch.add(0.0 if bucket == ZERO else _MAPPING.value(bucket), count)
    found = [sketch.get_quantile_value(share) for share in shares]
    return [None if value is None else value / 1e9 for value in found]


def share_within(counts: Mapping[int, int], limit_ns: int) -> float | None:
    """The share of durations up to a limit, which counts with its whole bucket; None without any."""
    total = sum(counts.values())
    last = int(buckets(np.array([limit_ns]))[0])
    return sum(count for bucket, count in counts.items() if bucket <= last) / total if total else None
