"""Outcomes as counts by window: rows of the table `counts`, many outcomes at a time.

Keys are `(window_s, model, version, what, bucket)`; see `services.monitor.tables`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from services.monitor import sketch
from services.monitor.columns import bounded, numbers
from services.monitor.totals import bounded_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from services.monitor.fold import Counted
    from shared.outcome_events import Receipt

PHASES: Final = ("queue", "compute_input", "compute_infer", "compute_output", "total")
_NONE: Final = -1
"""A phase that there was none of."""

Of = tuple[int, str, int | None]
"""Window, model and version."""
Counts = Counter[tuple[int, str, int | None, str, int]]


def add(counts: Counts, windows: Sequence[int], outcomes: Sequence[Counted]) -> None:
    """Add outcomes, each completed in its window, to `counts`."""
    series, receipts, *_ = zip(*outcomes, strict=True)
    of = [(at_s, each.model, each.version) for at_s, each in zip(windows, series, strict=True)]
    for (key, status), n in Counter(zip(of, [each.status for each in receipts], strict=True)).items():
        counts[(*key, "outcome/" + status, 0)] += n
    for key, each, receipt in zip(of, series, receipts, strict=True):
        if receipt.error_code is not None:
            counts[(*key, "error/" + each.known_code(receipt.error_code), 0)] += 1
        if receipt.duplicate_of is not None:
            counts[(*key, "duplicates", 0)] += 1
        if receipt.reexecuted:
            counts[(*key, "reexecuted", 0)] += 1
    _add_batches(counts, of, receipts)
    _add_durations(counts, of, outcomes)


def _add_batches(counts: Counts, of: Sequence[Of], receipts: Sequence[Receipt]) -> None:
    """Batches, rows and runs; a run is counted by its first member, as in `services.monitor.totals`."""
    ran = [(key, each.batch, each) for key, each in zip(of, receipts, strict=True) if each.batch is not None]
    for (key, size), n in Counter([(key, batch.size) for key, batch, _ in ran]).items():
        counts[(*key, "batch", bounded_size(size))] += n
    succeeded = [each for each in ran if each[2].status == "succeeded"]
    for (key, rows), n in Counter([(key, batch.rows) for key, batch, _ in succeeded]).items():
        counts[(*key, "rows", 0)] += n * min(max(rows or 1, 1), sketch.MOST_NS)
    for key, batch, receipt in succeeded:
        if batch.index == 0:
            size = bounded_size(batch.size if batch.total_rows is None else batch.total_rows)
            counts[(*key, "run", size)] += 1
            counts[(*key, "run_ns", size)] += bounded(receipt.timings_ns.compute_infer or 0)


def _add_durations(counts: Counts, of: Sequence[Of], outcomes: Sequence[Counted]) -> None:
    """Every phase into the buckets of its sketch, and its sum."""
    places: dict[Of, int] = {}
    where = np.array([places.setdefault(key, len(places)) for key in of])
    keys, timings = list(places), [receipt.timings_ns for _, receipt, *_ in outcomes]
    columns: Mapping[str, Sequence[int | None]] = {
        "queue": [each.queue for each in timings],
        "compute_input": [each.compute_input for each in timings],
        "compute_infer": [each.compute_infer for each in timings],
        "compute_output": [each.compute_output for each in timings],
        "total": [total_ns for _, _, total_ns, *_ in outcomes],
    }
    for phase, column in columns.items():
        spent_ns = numbers(column).fill_null(_NONE).to_numpy()
        there = spent_ns != _NONE
        for place, bucket, n in _counted(where[there], sketch.buckets(spent_ns[there])):
            counts[(*keys[place], phase, bucket)] += n
        sums = np.zeros(len(keys), dtype=np.int64)
        np.add.at(sums, where[there], spent_ns[there])
        for place in np.unique(where[there]).tolist():
            counts[(*keys[place], phase + "_ns", 0)] += int(sums[place])


def _counted(where: npt.NDArray[np.int64], buckets: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """How often each place has each bucket."""
    most = 2**32
    found, counted = np.unique(where * most + (buckets - sketch.ZERO), return_counts=True)
    return [
        (each // most, each % most + sketch.ZERO, n) for each, n in zip(found.tolist(), counted.tolist(), strict=True)
    ]
