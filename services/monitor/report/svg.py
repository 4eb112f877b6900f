"""Plots as SVG that stands inside a page: lines over time with the events of the timeline, and bars.

Colours are CSS classes of the page (`line0` to `line7`, `grid`, `mark-…`), so that they follow its light or dark theme.
A gap in the numbers is a gap in the line.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Final

from services.monitor.report.wording import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from services.monitor.queries import Happening
    from services.monitor.report.content import Line, Numbers
    from services.monitor.span import Span

WIDTH, HEIGHT = 760, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28
COLOURS: Final = 8
"""Lines beyond share the colours of the first ones, dashed."""
_TICKS: Final = 4
_TIME_TICKS: Final = 6
_MOST_BARS: Final = 40
MARKED: Final = ("deploy", "restart", "lost", "start", "overload", "alert")


def lines(title: str, drawn: Sequence[Line], span: Span, events: Sequence[Happening]) -> str:
    """A plot of series of one unit over the windows of a span."""
    most = max((value for line in drawn for value in line.values if value is not None), default=0.0)
    top = _nice(most)
    unit = drawn[0].unit
    parts = [*_grid(top, unit), *_times(span), *_marks(span, events)]
    for index, line in enumerate(drawn):
        style = f"line line{index % COLOURS}" + (" dashed" if index >= COLOURS else "")
        for stretch in _stretches(line.values):
            points = [(_x(place, len(line.values)), _y(value, top)) for place, value in stretch]
            if len(points) == 1:
                parts.append(f'<circle class="dot {style}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2"/>')
            else:
                at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                parts.append(f'<polyline class="{style}" points="{at}"/>')
    told = f"{title}: {', '.join(line.name for line in drawn)}; at most {number(most, unit)}"
    return _svg(told, parts)


def bars(title: str, counts: Mapping[int, int]) -> str:
    """A histogram: how many of each size."""
    shown = sorted(counts.items())[:_MOST_BARS]
    top = _nice(max((count for _, count in shown), default=0))
    room = (WIDTH - _LEFT - _RIGHT) / max(len(shown), 1)
    parts = list(_grid(top, ""))
    for place, (size, count) in enumerate(shown):
        x, y = _LEFT + place * room, _y(count, top)
        box = f'x="{x + room * 0.1:.1f}" y="{y:.1f}" width="{room * 0.8:.1f}" height="{HEIGHT - _BOTTOM - y:.1f}"'
        parts.append(f'<rect class="bar" {box}><title>{size}: {count}</title></rect>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x + room / 2:.1f}" y="{HEIGHT - 10}">{size}</text>')
    return _svg(f"{title}: " + ", ".join(f"{size}: {count}" for size, count in shown), parts)


def _svg(told: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told, quote=True)}">'
    return head + "".join(parts) + "</svg>"


def _grid(top: float, unit: str) -> Iterator[str]:
    for tick in range(_TICKS + 1):
        value = top * tick / _TICKS
        y = _y(value, top)
        yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        text = escape(number(value, unit))
        yield f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>'


def _times(span: Span) -> Iterator[str]:
    form = "%H:%M:%S" if span.seconds <= 3600 else "%H:%M" if span.seconds <= 2 * 86_400 else "%m-%d"  # noqa: PLR2004
    for tick in range(_TIME_TICKS + 1):
        at = datetime.fromtimestamp(span.start_s + span.seconds * tick / _TIME_TICKS, UTC)
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * tick / _TIME_TICKS
        anchor = "start" if not tick else "end" if tick == _TIME_TICKS else "middle"
        yield f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" y="{HEIGHT - 10}">{at.strftime(form)}</text>'


def _marks(span: Span, events: Sequence[Happening]) -> Iterator[str]:
    """A line down the plot for each event; its text shows when it is pointed at."""
    for event in events:
        if event.kind in MARKED and span.start_s <= event.at_s <= span.end_s:
            x = _LEFT + (WIDTH - _LEFT - _RIGHT) * (event.at_s - span.start_s) / span.seconds
            place = f'x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"'
            yield f'<line class="mark mark-{event.kind}" {place}><title>{escape(event.text)}</title></line>'


def _stretches(values: Numbers) -> Iterator[list[tuple[int, float]]]:
    """Runs of values without a gap, each with its place."""
    stretch: list[tuple[int, float]] = []
    for place, value in enumerate(values):
        if value is not None and math.isfinite(value):
            stretch.append((place, value))
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _x(place: int, windows: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (place + 0.5) / windows


def _y(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * max(value, 0.0) / top


def _nice(most: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below."""
    if most <= 0 or not math.isfinite(most):
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next((step * power for step in (1, 2, 2.5, 5) if step * power >= most), 10 * power)
