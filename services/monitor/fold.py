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

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from services.monitor.histogram import Histogram
from services.monitor.portion import portion
from services.monitor.totals import Totals, bounded_size
from shared.errors import AiaasError, UnknownVersion
from shared.outcomes import Watermarks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from services.monitor.portion import Portion
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

    def add(self, outcomes: Portion) -> None:
        """Take in outcomes that count: column by column, which takes half the time of one outcome after the other."""
        self.statuses.update(outcomes.statuses)
        self.error_codes.update([self.known_code(code) for code in outcomes.error_codes if code is not None])
        self.duplicates += len(outcomes.duplicates_of) - outcomes.duplicates_of.count(None)
        self.reexecuted += sum(outcomes.reexecuted)
        for size, n in Counter(outcomes.batch_sizes).items():
            if size is not None:
                self.batch_sizes[bounded_size(size)] += n
        for phase, durations_ns in zip(PHASES, outcomes.spent_ns, strict=True):
            self.phases[phase].observe([each for each in durations_ns if each is not None])
        self.totals.add(outcomes)


Record = tuple[int, int, "Receipt | Ignored", int]
"""A record of the log: partition and offset, a receipt or why it is none, and when it was appended, in ms."""


class Sink(Protocol):
    """Who hears of every outcome that counts."""

    def outcomes(self, series: Series, outcomes: Portion) -> None:
        """Take in some of one series."""


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

    def add(self, records: Iterable[Record]) -> None:
        """Take in records of the log, those of a partition in their order."""
        counted: defaultdict[tuple[str, int | None, bool], list[tuple[int, int, Receipt, int]]] = defaultdict(list)
        for partition, offset, outcome, at_ms in records:
            self.offsets[partition] = offset + 1
            if isinstance(outcome, str):
                self.ignored[outcome] += 1
            elif self.watermarks.accept(outcome):
                of = (outcome.model_name, outcome.model_version, outcome.error_code == UnknownVersion.code)
                counted[of].append((partition, offset, outcome, at_ms))
            else:
                self.ignored["repeat"] += 1
        for (model, version, unknown), some in counted.items():
            series = self._of(model, None if unknown else version)
            outcomes = portion(some)
            series.add(outcomes)
            if self.sink is not None:
                self.sink.outcomes(series, outcomes)

    def knows(self, model: str) -> bool:
        """Whether a request to the model has an outcome."""
        return any(series.model == model for series in self.series.values())

    def _of(self, model: str, version: int | None) -> Series:
        key = f"{model}/{version or ''}"
        series = self.series.get(key)
        if series is None:
            if len(self.series) >= MAX_SERIES:
                key, model, version = _OVERFLOW, _OVERFLOW, None
            series = self.series.setdefault(key, Series(model, version))
        return series
