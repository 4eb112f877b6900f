"""Measuring: how close a candidate's answers are to those of fp32, and how long runs take.

Closeness is over `ROWS` plain rows. Cosine is the mean over rows, the least of all outputs; top-1 agreement, where a
row of an output is a vector of at least two numbers, is the share of rows whose largest one is at the same place, the
least of all such outputs; whole numbers, flags and strings count as agreeing where they are equal. Speed is the median
of single runs, fp32 and candidate by turns, so that a busy machine slows both.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from services.optimizer.sandbox.probes import Rows, stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.optimizer.sandbox.batching import Batching
    from services.optimizer.sandbox.engine import Engine, Feeds
    from shared.signature import Signature
    from shared.tensors import Array

ROWS: Final = 256
BATCH_SIZES: Final = (1, 8, 32)
_MIN_RUNS: Final = 3
_MAX_RUNS: Final = 51
_BUDGET_S: Final = 0.5
"""For the runs at one batch size; at least `_MIN_RUNS` are made whatever they take."""


class OutOfTime(Exception):
    """The time for candidates is over."""


@dataclass
class Closeness:
    """How close two variants are, added up row by row."""

    max_abs_error: float = 0.0
    _cosines: dict[int, list[float]] = field(default_factory=dict)
    _agreements: dict[int, list[bool]] = field(default_factory=dict)

    @property
    def cosine(self) -> float | None:
        """The least mean over outputs; None if no output is made of floating-point numbers."""
        return min((float(np.mean(values)) for values in self._cosines.values()), default=None)

    @property
    def top1_agreement(self) -> float | None:
        """The least share over outputs that look like scores or are equal or not; None if there are none."""
        return min((float(np.mean(values)) for values in self._agreements.values()), default=None)

    def add(self, output: int, expected: Array, found: Array) -> None:
        """Compare one row of one output."""
        if expected.dtype.kind != "f":
            self._agreements.setdefault(output, []).append(bool(np.array_equal(expected, found)))
            return
        wide, other = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        with np.errstate(all="ignore"):
            self._cosines.setdefault(output, []).append(_cosine(wide, other))
            both = np.isfinite(wide) & np.isfinite(other)
            self.max_abs_error = max(self.max_abs_error, float(np.abs(wide - other)[both].max(initial=0.0)))
        if sum(size > 1 for size in expected.shape) == 1:
            self._agreements.setdefault(output, []).append(bool(wide.argmax() == other.argmax()))


def _cosine(expected: Array, found: Array) -> float:
    if expected.shape != found.shape or not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return 0.0
    finite = np.isfinite(expected)
    left, right = expected[finite], found[finite]
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    if norms == 0.0:
        return 1.0 if np.array_equal(left, right) else 0.0
    return float(np.clip(left @ right / norms, -1.0, 1.0))


def closeness(
    reference: Engine, candidate: Engine, signature: Signature, batching: Batching, size: int, seed: int, until_s: float
) -> Closeness:
    """Compare answers on `ROWS` rows, `size` of them in a run.

    Raises:
        OutOfTime: `until_s` (of the monotonic clock) has passed.
        Rejection: the candidate does not run.
    """
    # Seeded apart from the proofs: what a variant is judged by it has not seen.
    rows, found = Rows(signature, batching.setting, batching.inputs, seed + 1), Closeness()
    for _ in range(-(-ROWS // size)):
        if time.monotonic() > until_s:
            raise OutOfTime
        feeds = stack(rows.plain(size), batching.inputs)
        pairs = zip(reference.run(feeds), candidate.run(feeds), strict=True)
        for output, (expected, answer) in enumerate(pairs):
            axis = batching.outputs[output] if batching.outputs is not None else None
            if expected.shape != answer.shape or axis is None:
                found.add(output, expected, answer)
                continue
            for row in range(size):
                found.add(output, np.take(expected, row, axis), np.take(answer, row, axis))
    return found


def latencies_s(
    engines: Sequence[Engine], signature: Signature, batching: Batching, seed: int
) -> dict[int, list[float]]:
    """Median seconds of a run of each engine, by batch size, for the sizes of `BATCH_SIZES` that the cap allows."""
    rows = Rows(signature, batching.setting, batching.inputs, seed)
    pool = rows.plain(min(max(BATCH_SIZES), batching.cap))
    sizes = [size for size in BATCH_SIZES if size <= batching.cap]
    return {size: _medians(engines, stack(pool[:size], batching.inputs)) for size in sizes}


def _medians(engines: Sequence[Engine], feeds: Feeds) -> list[float]:
    for engine in engines:
        engine.run(feeds)  # the first run of a shape allocates
    times: list[list[float]] = [[] for _ in engines]
    until_s = time.monotonic() + _BUDGET_S
    for turn in range(_MAX_RUNS):
        if turn >= _MIN_RUNS and time.monotonic() > until_s:
            break
        for engine, taken in zip(engines, times, strict=True):
            taken.append(engine.duration_s(feeds))
    return [float(np.median(taken)) for taken in times]


def speedup(reference_s: Sequence[float], candidate_s: Sequence[float]) -> float:
    """The geometric mean over batch sizes of the reference's time over the candidate's."""
    return float(np.exp(np.mean(np.log(np.asarray(reference_s) / np.asarray(candidate_s)))))
