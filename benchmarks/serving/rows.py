"""What is kept of a slice, and what is made of the slices of all repeats."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Case = tuple[str, str, int]
"""Model, system, concurrency."""


@dataclass(frozen=True, slots=True)
class Row:
    """One slice. CPU times are seconds per thousand requests, by process; shares are of one core."""

    model: str
    system: str
    concurrency: int
    repeat: int
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000: dict[str, float]
    generator_cpu_share: float
    mean_batch: float | None
    errors: int
    wrong: list[str]
    faults: dict[str, int] = field(default_factory=dict)
    """How many errors of which kind: statuses, lost connections, requests without an answer."""
    results_per_s: float | None = None
    result_p50_ms: float | None = None
    """By Kafka alone: what Redis has of the answered requests, and the time from produce to that."""

    @property
    def case(self) -> Case:
        """What is repeated."""
        return self.model, self.system, self.concurrency

    @property
    def per_cpu_s(self) -> float:
        """Requests a CPU second of all processes involved, the generator apart."""
        return 1000 / max(1e-9, sum(self.cpu_s_per_1000.values()))


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most over the repeats."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = sorted(values)
        return cls(median(found), found[0], found[-1])


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the table. `ratio` is throughput over the reference's in the same repeat."""

    model: str
    system: str
    concurrency: int
    repeats: int
    per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    ratio: Spread | None
    added_p50_ms: Spread | None
    """p50 minus the reference's p50 in the same repeat."""
    of_ceiling: Spread | None
    """Throughput over that of the ceiling at its best batch size in the same repeat."""
    of_ceiling_per_cpu: Spread | None
    """The same for requests a CPU second."""
    cpu_s_per_1000: dict[str, float]
    generator_cpu_share: float
    mean_batch: float | None
    errors: int
    wrong: int
    results_per_s: Spread | None
    result_p50_ms: Spread | None


def summaries(rows: list[Row], reference: str, ceiling: str) -> list[Summary]:
    """One for each case, in the order in which cases were first seen."""
    best: dict[tuple[str, int], Row] = {}
    for row in sorted(rows, key=lambda row: row.per_s):
        if row.system == ceiling:  # its concurrency is a batch size: it has no reference
            best[row.model, row.repeat] = row
    by_case: dict[Case, list[Row]] = defaultdict(list)
    for row in rows:
        by_case[row.case].append(row)
    references = {(row.model, row.concurrency, row.repeat): row for row in rows if row.system == reference}
    return [_summary(case, found, {} if case[1] == ceiling else references, best) for case, found in by_case.items()]


def _summary(
    case: Case, rows: list[Row], references: dict[tuple[str, int, int], Row], best: dict[tuple[str, int], Row]
) -> Summary:
    def compared(others: list[Row | None], compare: Callable[[Row, Row], float]) -> Spread | None:
        pairs = zip(rows, others, strict=True)
        return known(compare(row, other) if other is not None and other.per_s else None for row, other in pairs)

    def known(values: Iterable[float | None]) -> Spread | None:
        there = [value for value in values if value is not None]
        return Spread.of(there) if there else None

    bares = [references.get((row.model, row.concurrency, row.repeat)) for row in rows]
    ceilings = [best.get((row.model, row.repeat)) for row in rows]
    batch = known(row.mean_batch for row in rows)
    names = dict.fromkeys(name for row in rows for name in row.cpu_s_per_1000)
    return Summary(
        *case,
        repeats=len(rows),
        per_s=Spread.of(row.per_s for row in rows),
        p50_ms=Spread.of(row.p50_ms for row in rows),
        p99_ms=Spread.of(row.p99_ms for row in rows),
        ratio=compared(bares, lambda row, other: row.per_s / other.per_s),
        added_p50_ms=compared(bares, lambda row, other: row.p50_ms - other.p50_ms),
        of_ceiling=compared(ceilings, lambda row, other: row.per_s / other.per_s),
        of_ceiling_per_cpu=compared(ceilings, lambda row, other: row.per_cpu_s / other.per_cpu_s),
        cpu_s_per_1000={name: median(row.cpu_s_per_1000.get(name, 0.0) for row in rows) for name in names},
        generator_cpu_share=median(row.generator_cpu_share for row in rows),
        mean_batch=batch.median if batch else None,
        errors=sum(row.errors for row in rows),
        wrong=sum(len(row.wrong) for row in rows),
        results_per_s=known(row.results_per_s for row in rows),
        result_p50_ms=known(row.result_p50_ms for row in rows),
    )
