"""Outcomes as counts by window: rows of the table `counts`, many outcomes at a time.

Keys are `(window_s, model, version, what, bucket)`; see `services.monitor.tables`.
"""

from __future__ import annotations

from collections import Counter
from itertools import compress
from typing import TYPE_CHECKING, Final

import numpy as np

from services.monitor import sketch
from services.monitor.columns import bounded
from services.monitor.fold import Series
from services.monitor.totals import bounded_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import pyarrow as pa

    from services.monitor.portion import Portion

PHASES: Final = ("queue", "compute_input", "compute_infer", "compute_output", "total")
_NONE: Final = -1
"""A phase that there was none of."""

Of = tuple[int, str, int | None]
"""Window, model and version."""
Counts = Counter[tuple[int, str, int | None, str, int]]


def add(counts: Counts, of: Sequence[Of], outcomes: Portion, spent: Mapping[str, pa.Int64Array]) -> None:
    """Add outcomes, each of its window and version, to `counts`. `spent` is how long they took, by phase."""
    keys = list(dict.fromkeys(of))
    places = {key: place for place, key in enumerate(keys)}
    where = [places[key] for key in of]
    for (place, status), n in Counter(zip(where, outcomes.statuses, strict=True)).items():
        counts[(*keys[place], "outcome/" + status, 0)] += n
    for place, code in zip(where, outcomes.error_codes, strict=True):
        if code is not None:
            counts[(*keys[place], "error/" + Series.known_code(code), 0)] += 1
    for place, first in zip(where, outcomes.duplicates_of, strict=True):
        if first is not None:
            counts[(*keys[place], "duplicates", 0)] += 1
    for place in compress(where, outcomes.reexecuted):
        counts[(*keys[place], "reexecuted", 0)] += 1
    _add_batches(counts, keys, where, outcomes)
    _add_durations(counts, keys, np.array(where), spent)


def _add_batches(counts: Counts, keys: Sequence[Of], where: Sequence[int], outcomes: Portion) -> None:
    """Batches, rows and runs; a run is counted by its first member, as in `services.monitor.totals`."""
    for (place, size), n in Counter(zip(where, outcomes.batch_sizes, strict=True)).items():
        if size is not None:
            counts[(*keys[place], "batch", bounded_size(size))] += n
    ran = [
        batch is not None and status == "succeeded"
        for batch, status in zip(outcomes.batches, outcomes.statuses, strict=True)
    ]
    for (place, rows), n in Counter(compress(zip(where, outcomes.rows, strict=True), ran)).items():
        counts[(*keys[place], "rows", 0)] += n * min(max(rows or 1, 1), sketch.MOST_NS)
    for place, receipt in compress(zip(where, outcomes.receipts, strict=True), ran):
        batch = receipt.batch
        if batch is not None and batch.index == 0:
            size = bounded_size(batch.size if batch.total_rows is None else batch.total_rows)
            counts[(*keys[place], "run", size)] += 1
            counts[(*keys[place], "run_ns", size)] += bounded(receipt.timings_ns.compute_infer or 0)


def _add_durations(
    counts: Counts, keys: Sequence[Of], where: npt.NDArray[np.int64], spent: Mapping[str, pa.Int64Array]
) -> None:
    """Every phase into the buckets of its sketch, and its sum."""
    for phase, column in spent.items():
        spent_ns = column.fill_null(_NONE).to_numpy()
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
