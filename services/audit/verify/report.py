"""What verify found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

_MOST: Final = 1000
"""Broken links that are told one by one; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A link that does not hold: what kind, where, and why in a sentence."""

    link: str
    """chain, manifest, file, checkpoint, completeness, outcome, request or result."""
    where: str
    why: str


@dataclass
class Report:
    """Counts, broken links in the order in which they were found, and what could not be looked at."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[Broken] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at holds."""
        return not self.counts["broken"]

    def expect(self, holds: bool, link: str, where: str, why: str) -> bool:
        """Note a broken link unless it holds; returns whether it does."""
        if not holds:
            self.counts["broken"] += 1
            if len(self.broken) < _MOST:
                self.broken.append(Broken(link, where, why))
        return holds

    def note(self, what: str) -> None:
        """Something that is no fault, and that the reader should know; once."""
        if what not in self.notes:
            self.notes.append(what)

    def as_map(self) -> dict[str, Any]:
        """For machines."""
        links = [{"link": each.link, "where": each.where, "why": each.why} for each in self.broken]
        return {
            "ok": self.ok,
            "first_broken": links[0] if links else None,
            "broken": links,
            "counts": dict(sorted(self.counts.items())),
            "notes": self.notes,
        }
