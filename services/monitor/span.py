"""The span of time that a query is about: `from`, `to` and the width of its windows.

Windows begin at multiples of their width since the epoch. A span covers whole windows: it begins with the one that
`from` lies in, and ends with the one before `to`, or in which `to` lies.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from shared.errors import InvalidInput

WINDOW_S: Final = 10
"""The narrowest window."""
MOST_POINTS: Final = 2000
_USUAL_POINTS: Final = 360
_USUAL_SPAN_S: Final = 3600
_WIDTHS_S: Final = (10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400)
_BEFORE_NOW: Final = re.compile(r"-(\d{1,9})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LATEST_S: Final = 4_102_444_800
"""2100: no date of interest lies behind it, and arithmetic stays far from every bound."""


@dataclass(frozen=True)
class Span:
    """Windows of `step_s` seconds from `start_s` up to `end_s`, both multiples of it."""

    start_s: int
    end_s: int
    step_s: int

    @property
    def windows(self) -> range:
        """The beginnings of the windows."""
        return range(self.start_s, self.end_s, self.step_s)

    @property
    def seconds(self) -> int:
        """How long it is."""
        return self.end_s - self.start_s


def read(begin: str | None, end: str | None, step_s: int | None, now_s: float) -> Span:
    """The span that a query asks for.

    Raises:
        InvalidInput: no time, an end that is not after the beginning, or more windows than `MOST_POINTS`.
    """
    until_s = now_s if end is None else _time(end, now_s)
    from_s = until_s - _USUAL_SPAN_S if begin is None else _time(begin, now_s)
    if until_s <= from_s:
        raise InvalidInput("`to` is not after `from`")
    if step_s is None:
        step_s = next((width for width in _WIDTHS_S if (until_s - from_s) / width <= _USUAL_POINTS), _WIDTHS_S[-1])
    if step_s <= 0 or step_s % WINDOW_S:
        raise InvalidInput(f"`step_s` is not a multiple of {WINDOW_S}: {step_s}")
    span = Span(math.floor(from_s / step_s) * step_s, math.ceil(until_s / step_s) * step_s, step_s)
    if len(span.windows) > MOST_POINTS:
        raise InvalidInput(f"{len(span.windows)} windows are more than {MOST_POINTS}: give a larger `step_s`")
    return span


def _time(text: str, now_s: float) -> float:
    """A moment in Unix seconds, from RFC 3339, Unix seconds, or a time before now."""
    before = _BEFORE_NOW.fullmatch(text)
    if before:
        at_s = now_s - int(before[1]) * _UNIT_S[before[2]]
    elif re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
        at_s = float(text)
    else:
        try:
            at = datetime.fromisoformat(text)
        except ValueError as err:
            raise InvalidInput(f"{text[:40]!r} is no time: RFC 3339, Unix seconds, or one before now (-2h)") from err
        at_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if not 0 <= at_s <= _LATEST_S:
        raise InvalidInput(f"{text[:40]!r} is not a time between 1970 and 2100")
    return at_s
