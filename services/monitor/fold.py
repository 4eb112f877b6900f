"""The exact statistics of requests: a fold over the outcome log, without I/O and without a clock.

Which outcome counts is decided by `shared.outcomes.Watermarks`, one integer per request partition. The state belongs
to the offsets it was folded up to, and is stored together with them: fold a log in any number of sittings, and the
numbers are those of one. Everything in here is a count or an integer sum, so how the partitions of the log interleave
does not matter either.

`batch_sizes` has the requests that count by the number of requests in the batch they ran in; runs of the model, and
rows, are counted in `totals`, which says how.

Labels are bounded, because receipts repeat what producers sent: error codes are those of `shared.errors` or `other`,
a version that does not exist is no version, and series beyond `MAX_SERIES` go into one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from services.monitor.histogram import Histogram
from services.monitor.totals import Totals, bounded_size
from shared.errors import AiaasError, UnknownVersion
from shared.outcomes import Watermarks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shared.outcome_events import Receipt

PHASES = ("queue", "compute_input", "compute_infer", "compute_output", "total")
"""`total` is the sum of the others, as far as the request got."""
MAX_SERIES = 1000
OTHER = "other"
_OVERFLOW = "_other"
"""No model can be called that."""

Ignored = Literal["repeat", "malformed", "forged"]


def _codes(error: type[AiaasError] = AiaasError) -> Iterator[str]:
    yield error.code
    for below in error.__subclasses__():
        yield from _codes(below)


CODES = frozenset(_codes())


@dataclass(slots=True)
class Series:
    """What came of the requests to one version of a model; `version` is None where none was chosen."""

    model: str
    version: int | None
    statuses: Counter[str] = field(default_factory=Counter)
    error_codes: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    reexecuted: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    """Requests by how many were in the batch they ran in."""
    phases: dict[str, Histogram] = field(default_factory=lambda: {phase: Histogram() for phase in PHASES})
    totals: Totals = field(default_factory=Totals)

    @staticmethod
    def known_code(code: str) -> str:
        """The error code that one from a receipt counts as."""
        return code if code in CODES else OTHER

    def add(self, receipt: Receipt, at_ms: int) -> int:
        """Take in an outcome that counts, appended at `at_ms`; returns the nanoseconds it took in all."""
        self.statuses[receipt.status] += 1
        if receipt.error_code is not None:
            self.error_codes[self.known_code(receipt.error_code)] += 1
        self.duplicates += receipt.duplicate_of is not None
        self.reexecuted += receipt.reexecuted
        if receipt.batch is not None:
            self.batch_sizes[bounded_size(receipt.batch.size)] += 1
        timings, phases = receipt.timings_ns, self.phases
        spent = (timings.queue, timings.compute_input, timings.compute_infer, timings.compute_output)
        total_ns = 0
        for phase, duration_ns in zip(PHASES, spent, strict=False):
            if duration_ns is not None:
                phases[phase].observe(duration_ns)
                if duration_ns > 0:
                    total_ns += duration_ns
        phases["total"].observe(total_ns)
        self.totals.add(receipt, total_ns, at_ms)
        return total_ns


class Sink(Protocol):
    """Who hears of every outcome that counts."""

    def outcome(
        self, series: Series, receipt: Receipt, *, total_ns: int, partition: int, offset: int, at_ms: int
    ) -> None:
        """An outcome at its place in the log, appended at `at_ms`, of a request that took `total_ns`."""


@dataclass(slots=True)
class OutcomeFold:
    """The statistics, and how far the log is folded into them."""

    series: dict[str, Series] = field(default_factory=dict)
    ignored: Counter[Ignored] = field(default_factory=Counter)
    """Records of the log that do not count, by reason."""
    watermarks: Watermarks = field(default_factory=Watermarks)
    offsets: dict[int, int] = field(default_factory=dict)
    """The next offset to fold, by partition of the outcome log."""
    sink: Sink | None = field(default=None, compare=False)

    def add(self, partition: int, offset: int, outcome: Receipt | Ignored, at_ms: int = 0) -> None:
        """Take in one record of the log, stamped `at_ms`: a receipt, or why it is none."""
        self.offsets[partition] = offset + 1
        if isinstance(outcome, str):
            self.ignored[outcome] += 1
        elif self.watermarks.accept(outcome):
            series = self._of(outcome)
            total_ns = series.add(outcome, at_ms)
            if self.sink is not None:
                self.sink.outcome(series, outcome, total_ns=total_ns, partition=partition, offset=offset, at_ms=at_ms)
        else:
            self.ignored["repeat"] += 1

    def knows(self, model: str) -> bool:
        """Whether a request to the model has an outcome."""
        return any(series.model == model for series in self.series.values())

    def _of(self, receipt: Receipt) -> Series:
        known = receipt.error_code != UnknownVersion.code
        model, version = receipt.model_name, receipt.model_version if known else None
        key = f"{model}/{version or ''}"
        series = self.series.get(key)
        if series is None:
            if len(self.series) >= MAX_SERIES:
                key, model, version = _OVERFLOW, _OVERFLOW, None
            series = self.series.setdefault(key, Series(model, version))
        return series
