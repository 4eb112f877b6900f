"""What a replay comes to: counts by class, and the rows that are not identical."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from services.audit.replay.verdicts import CLASSES

if TYPE_CHECKING:
    from services.audit.replay.verdicts import Verdict

MOST_DIFFS: Final = 100_000
CLEAN, DIFFERENT, NOT_RUN = 0, 1, 2
"""Exit codes."""


@dataclass
class Summary:
    """The counts, and up to `MOST_DIFFS` rows by name."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Why rows were not reproducible, without what differs from row to row."""
    diffs: list[dict[str, str]] = field(default_factory=list)
    not_run: int = 0
    """Selected requests of which nothing ran when they were answered."""
    seconds: float = 0.0

    def add(self, verdict: Verdict) -> None:
        """Count a row."""
        self.counts[verdict.verdict] += 1
        if verdict.verdict == "not_reproducible":
            self.reasons[verdict.reason.partition(":")[0].partition(" (")[0]] += 1
        if verdict.verdict != "identical" and len(self.diffs) < MOST_DIFFS:
            about = {"request_id": verdict.receipt.request_id, "class": verdict.verdict, "reason": verdict.reason}
            self.diffs.append(about)

    @property
    def replayed(self) -> int:
        """Rows that ran again, with whatever verdict but that they could not."""
        return sum(self.counts[name] for name in CLASSES if name != "not_reproducible")

    @property
    def exit_code(self) -> int:
        """1 if an answer changed; else 2 if nothing was selected, or some of it could not run; else 0."""
        if self.counts["changed"]:
            return DIFFERENT
        return NOT_RUN if self.counts["not_reproducible"] or not self.replayed else CLEAN

    @property
    def by_class(self) -> dict[str, int]:
        """The counts of all classes."""
        return {name: self.counts[name] for name in CLASSES}

    @property
    def sentence(self) -> str:
        """The verdict."""
        same = self.counts["identical"] + self.counts["within_tolerance"]
        if self.counts["changed"]:
            return f"{self.counts['changed']} of {self.replayed} answers changed."
        if left := self.counts["not_reproducible"]:
            return f"{same} answers were given again; {left} could not be reproduced."
        if not same:
            return "Nothing was replayed."
        how = "within tolerance" if self.counts["within_tolerance"] else "bit for bit"
        return f"All {same} answers were given again, {how}."

    def as_map(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "replayed": self.replayed,
            **self.by_class,
            "not_run": self.not_run,
            "seconds": round(self.seconds, 3),
            "reasons": dict(self.reasons),
            "diffs": self.diffs,
        }
