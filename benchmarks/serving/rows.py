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
    def cpu_s_per_1000_in_all(self) -> float:
        """Of all processes but the generator."""
        return sum(self.cpu_s_per_1000.values())


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
    cpu_s_per_1000: dict[str, float]
    generator_cpu_share: float
    mean_batch: float | None
    errors: int
    wrong: int
    results_per_s: Spread | None
    result_p50_ms: Spread | None


def summaries(rows: list[Row], reference: str) -> list[Summary]:
    """One for each case, in the order in which cases were first seen."""
    by_case: dict[Case, list[Row]] = defaultdict(list)
    for row in rows:
        by_case[row.case].append(row)
    references = {(row.model, row.concurrency, row.repeat): row for row in rows if row.system == reference}
    return [_summary(case, found, references) for case, found in by_case.items()]


def _summary(case: Case, rows: list[Row], references: dict[tuple[str, int, int], Row]) -> Summary:
    pairs = [(row, references.get((row.model, row.concurrency, row.repeat))) for row in rows]

    def compared(compare: Callable[[Row, Row], float]) -> Spread | None:
        values = [compare(row, other) for row, other in pairs if other is not None and other.per_s]
        return Spread.of(values) if values else None

    def known(values: Iterable[float | None]) -> Spread | None:
        there = [value for value in values if value is not None]
        return Spread.of(there) if there else None

    batch = known(row.mean_batch for row in rows)
    names = dict.fromkeys(name for row in rows for name in row.cpu_s_per_1000)
    return Summary(
        *case,
        repeats=len(rows),
        per_s=Spread.of(row.per_s for row in rows),
        p50_ms=Spread.of(row.p50_ms for row in rows),
        p99_ms=Spread.of(row.p99_ms for row in rows),
        ratio=compared(lambda row, other: row.per_s / other.per_s),
        added_p50_ms=compared(lambda row, other: row.p50_ms - other.p50_ms),
        cpu_s_per_1000={name: median(row.cpu_s_per_1000.get(name, 0.0) for row in rows) for name in names},
        generator_cpu_share=median(row.generator_cpu_share for row in rows),
        mean_batch=batch.median if batch else None,
        errors=sum(row.errors for row in rows),
        wrong=sum(len(row.wrong) for row in rows),
        results_per_s=known(row.results_per_s for row in rows),
        result_p50_ms=known(row.result_p50_ms for row in rows),
    )
