"""What is new since it was last stored, as rows of the history's tables; see `services.monitor.history`.

Everything is a sum by window, or a row that stands for itself, so rows of one window may be written in any number of
sittings and merged at any time. **Windows are by event time**: an outcome belongs to when it completed, by its receipt;
one that lies more than a day before or a minute behind the record's own stamp is not believed, and the stamp counts.
Both are facts of the log, so folding it again gives the same windows. The tables: `services.monitor.tables`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from services.monitor import counting, request_rows
from services.monitor.columns import numbers
from services.monitor.portion import nothing
from services.monitor.span import WINDOW_S
from services.monitor.tables import SCHEMAS

if TYPE_CHECKING:
    from services.monitor.counting import Counts, Of
    from services.monitor.fold import Series
    from services.monitor.portion import Portion
    from shared.outcome_events import Receipt

MOST_ROWS: Final = 200_000
"""Rows of all tables that wait to be stored. What outcomes add beyond it has to wait, what samples add is dropped."""
_TOGETHER: Final = 1024
"""Outcomes that are made rows of together: more would no longer be in the CPU's caches, fewer cost more calls."""
_EARLIEST_MS: Final = 86_400_000
_LATEST_MS: Final = 60_000
SampleKey = tuple[int, str, str, str, str, int]


@lru_cache(maxsize=4096)
def _second(text: str) -> int:
    """The Unix second of `YYYY-MM-DDTHH:MM:SS`.

    Raises:
        ValueError: it is none.
    """
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp())


@lru_cache(maxsize=4096)
def _millisecond(text: str) -> int:
    """The Unix millisecond of `YYYY-MM-DDTHH:MM:SS`, and up to three digits of a fraction or none.

    Raises:
        ValueError: it is none.
    """
    return _second(text[:19]) * 1000 + int(text[20:].rstrip("Z").ljust(3, "0"))


def completed_ms(receipt: Receipt, appended_ms: int) -> int:
    """When the request completed, in ms: by its receipt, or, if that can't be believed, when the record was written."""
    try:
        at_ms = _millisecond(receipt.completed_at[:23])
    except ValueError:
        return appended_ms
    return at_ms if appended_ms - _EARLIEST_MS <= at_ms <= appended_ms + _LATEST_MS else appended_ms


@dataclass(slots=True)
class Recorder:
    """Rows to be stored. `take` hands them over; what could not be stored is given `back`."""

    _counts: Counts = field(default_factory=Counter)
    _outcomes: Portion = field(default_factory=nothing)
    _done_ms: list[int] = field(default_factory=list)
    """When each of them completed."""
    _of: list[Of] = field(default_factory=list)
    """What each of them counts for."""
    _samples: dict[SampleKey, list[float]] = field(default_factory=dict)
    _events: list[tuple[Any, ...]] = field(default_factory=list)
    _waiting: dict[str, list[pa.Table]] = field(default_factory=dict)
    """What was given back."""

    @property
    def rows(self) -> int:
        """Rows that wait, about."""
        waiting: int = sum(table.num_rows for tables in self._waiting.values() for table in tables)
        return len(self._counts) + len(self._done_ms) + len(self._samples) + len(self._events) + waiting

    @property
    def is_full(self) -> bool:
        """Whether what is there has to be stored before more is taken in."""
        return self.rows >= MOST_ROWS

    def outcomes(self, series: Series, outcomes: Portion) -> None:
        """Outcomes that count."""
        done_ms = [
            completed_ms(receipt, at_ms) for receipt, at_ms in zip(outcomes.receipts, outcomes.appended_ms, strict=True)
        ]
        windows = [at_ms // 1000 // WINDOW_S * WINDOW_S for at_ms in done_ms]
        of = {at_s: (at_s, series.model, series.version) for at_s in set(windows)}
        self._of += [of[at_s] for at_s in windows]
        self._done_ms += done_ms
        self._outcomes.extend(outcomes)
        if len(self._done_ms) >= _TOGETHER:
            self._tabulate()

    def _tabulate(self) -> None:
        """Make rows of the outcomes that wait: column by column, which takes a third of row by row."""
        outcomes, done_ms, of = self._outcomes, self._done_ms, self._of
        self._outcomes, self._done_ms, self._of = nothing(), [], []
        if done_ms:
            spent = dict(zip(counting.PHASES, map(numbers, outcomes.spent_ns), strict=True))
            counting.add(self._counts, of, outcomes, spent)
            self._waiting.setdefault("requests", []).append(request_rows.table(of, done_ms, outcomes, spent))

    def count(self, at_s: float, what: str, n: int) -> None:
        """Something of no model happened `n` times."""
        if n > 0 and not self.is_full:
            self._counts[(_window(at_s), "", None, what, 0)] += n

    def sample(
        self, at_s: float, gauge: str, value: float, *, instance: str, service: str = "", model: str = "", gpu: int = -1
    ) -> None:
        """A gauge's value at a moment."""
        key = (_window(at_s), instance, service, model, gauge, gpu)
        held = self._samples.get(key)
        if held is not None:
            held[0] += 1
            held[1] += value
            held[2] = max(held[2], value)
        elif not self.is_full:
            self._samples[key] = [1, value, value]

    def event(
        self,
        at_s: float,
        kind: str,
        text: str,
        *,
        model: str | None = None,
        version: int | None = None,
        instance: str | None = None,
        detail: str = "",
    ) -> None:
        """Something for the timeline. `detail` is JSON."""
        if not self.is_full:
            self._events.append((_window(at_s), at_s, kind, text, model, version, instance, detail))

    def take(self) -> dict[str, pa.Table]:
        """All rows, by table, no longer held here; tables without rows are left out."""
        self._tabulate()
        tables, self._waiting = self._waiting, {}
        rows: dict[str, list[tuple[Any, ...]]] = {
            "counts": [(*key, n) for key, n in self._counts.items()],
            "samples": [(*key, int(n), total, most) for key, (n, total, most) in self._samples.items()],
            "events": self._events,
        }
        self._counts, self._samples, self._events = Counter(), {}, []
        for name, held in rows.items():
            if held:
                tables.setdefault(name, []).append(_table(name, held))
        return {name: pa.concat_tables(parts) for name, parts in tables.items()}

    def back(self, tables: dict[str, pa.Table]) -> None:
        """Take back what could not be stored."""
        for name, table in tables.items():
            self._waiting.setdefault(name, []).append(table)


def _table(name: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    schema = SCHEMAS[name]
    columns = zip(*rows, strict=True)
    return pa.Table.from_arrays(
        [pa.array(column, type=kind.type) for column, kind in zip(columns, schema, strict=True)], schema=schema
    )


def _window(at_s: float) -> int:
    return int(at_s // WINDOW_S) * WINDOW_S
