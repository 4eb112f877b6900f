"""Counts of some windows added up, and what can be told from them: pure, and exact but for quantiles."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from services.monitor.counting import PHASES
from services.monitor.sketch import quantiles_s, share_within

STATUSES: Final = ("succeeded", "failed", "expired", "cancelled")
QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_NOTHING: Final[Counter[int]] = Counter()


@dataclass(slots=True)
class Tally:
    """`n` by `what` and bucket, as the table `counts` has it."""

    counts: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, what: str, bucket: int, n: int) -> None:
        """Some more."""
        self.counts.setdefault(what, Counter())[bucket] += n

    def merge(self, other: Tally) -> None:
        """All that another counted."""
        for what, buckets in other.counts.items():
            self.counts.setdefault(what, Counter()).update(buckets)

    def of(self, what: str) -> Counter[int]:
        """By bucket."""
        return self.counts.get(what, _NOTHING)

    def sum(self, what: str) -> int:
        """Over all buckets."""
        return self.of(what).total()

    @property
    def outcomes(self) -> dict[str, int]:
        """Requests by what came of them."""
        return {status: self.sum("outcome/" + status) for status in STATUSES}

    @property
    def requests(self) -> int:
        """Requests that have an outcome."""
        return sum(self.outcomes.values())

    @property
    def errors(self) -> int:
        """Requests that failed or expired: a caller who cancels got what was asked for."""
        outcomes = self.outcomes
        return outcomes["failed"] + outcomes["expired"]

    @property
    def error_ratio(self) -> float | None:
        """Errors of all requests that were not cancelled."""
        counted = self.requests - self.outcomes["cancelled"]
        return self.errors / counted if counted else None

    @property
    def error_codes(self) -> dict[str, int]:
        """Requests without a result, by code."""
        return self._below("error/")

    @property
    def http(self) -> dict[str, int]:
        """Answers of gateways, by status."""
        return self._below("http/")

    @property
    def rejected(self) -> int:
        """Requests refused at the door; who only looked whether it is open was not."""
        return max(self.sum("http/429") + self.sum("http/503") - self.sum("unready"), 0)

    def latency(self, phase: str = "total") -> dict[str, float | None]:
        """Quantiles and mean of a phase, in seconds."""
        held = self.of(phase)
        found = quantiles_s(held, tuple(QUANTILES.values()))
        return {**dict(zip(QUANTILES, found, strict=True)), "mean": self.mean_s(phase)}

    def mean_s(self, phase: str) -> float | None:
        """The mean of a phase, in seconds."""
        count = self.sum(phase)
        return self.sum(phase + "_ns") / count / 1e9 if count else None

    def latencies(self) -> dict[str, dict[str, float | None]]:
        """The same of every phase."""
        return {phase: self.latency(phase) for phase in PHASES}

    def within(self, limit_s: float) -> float | None:
        """The share of requests that took at most so long."""
        return share_within(self.of("total"), int(limit_s * 1e9))

    @property
    def mean_batch_size(self) -> float | None:
        """Requests in the batch that a request ran in, on average over requests."""
        sizes = self.of("batch")
        return sum(size * n for size, n in sizes.items()) / sizes.total() if sizes else None

    @property
    def runs(self) -> dict[int, tuple[int, float]]:
        """Runs and their seconds altogether, by rows."""
        return {size: (n, self.of("run_ns")[size] / 1e9) for size, n in sorted(self.of("run").items())}

    @property
    def run_s(self) -> float:
        """Seconds in which the model ran."""
        return self.sum("run_ns") / 1e9

    def summary(self) -> dict[str, Any]:
        """The most asked for, as JSON."""
        return {"requests": self.requests, **self.outcomes, "latency_s": self.latencies()}

    def _below(self, prefix: str) -> dict[str, int]:
        found = {what.removeprefix(prefix): n.total() for what, n in self.counts.items() if what.startswith(prefix)}
        return dict(sorted(found.items()))
