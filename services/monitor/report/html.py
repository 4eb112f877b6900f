"""The report as one HTML file that needs nothing else: no script, no other file, no other host."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from services.monitor.report import svg, wording
from services.monitor.report.content import SECTIONS
from services.monitor.report.style import CSS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.monitor.report.content import Line, Report
    from services.monitor.report.wording import Table

_MOST_PLOTS: Final = 24
"""Of a section; CSV and Parquet have all."""


def render(report: Report) -> bytes:
    """The page."""
    title = f"aiaas report{f' on {report.model}' if report.model else ''}"
    body = "".join(_body(report, title))
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{CSS}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html><html lang="en"><head>{head}{view}</head><body>{body}</body></html>\n'.encode()


def _body(report: Report, title: str) -> Iterator[str]:
    span = report.span
    yield f"<header><h1>{escape(title)}</h1>"
    when = f"{wording.moment(span.start_s)} to {wording.moment(span.end_s)} UTC, in windows of {span.step_s} s"
    yield f"<p>{when}; made {wording.moment(report.made_s)}.</p>"
    yield f"<p>{escape(wording.offsets(report))} Refused at the door (429, 503): {report.refused}.</p>"
    links = {"events": "Events", "outcomes": "Outcomes", **SECTIONS}
    yield "<nav aria-label='Sections'>" + "".join(f'<a href="#{key}">{name}</a>' for key, name in links.items())
    yield "</nav></header><main>"
    yield from _part("events", "What happened when", _table(wording.events(report), kinds=True))
    yield from _part("outcomes", "Outcomes", _table(wording.outcomes(report)) + _table(wording.findings(report)))
    for section, name in SECTIONS.items():
        yield from _part(section, name, "".join(_section(report, section)))
    yield "</main>"


def _part(key: str, title: str, content: str) -> Iterator[str]:
    yield f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(title)}</h2>{content}</section>'


def _section(report: Report, section: str) -> Iterator[str]:
    drawn = report.of(section)
    if section == "latency":
        yield _table(wording.latencies(report))
    if not drawn:
        yield "<p>Nothing was measured.</p>"
        return
    plots = _grouped(drawn)
    yield '<div class="plots">'
    for (subject, unit), lines in list(plots.items())[:_MOST_PLOTS]:
        name = f"{subject}, {unit}"
        yield _figure(name, svg.lines(name, lines, report.span, report.events), _legend(lines))
    if section == "throughput":
        for version in report.versions:
            if sizes := version.tally.of("batch"):
                name = f"{version.name}, requests by batch size"
                yield _figure(name, svg.bars(name, sizes), "")
    yield "</div>"
    if len(plots) > _MOST_PLOTS:
        yield f"<p>{len(plots) - _MOST_PLOTS} more are in the CSV and the Parquet form.</p>"
    table = _table(wording.extremes(report, section))
    yield f"<details><summary>The same in numbers</summary>{table}</details>"


def _grouped(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """Lines that share a plot: of one subject, in one unit."""
    plots: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        plots.setdefault((line.subject, line.unit), []).append(line)
    return plots


def _figure(name: str, plot: str, legend: str) -> str:
    return f"<figure><h3>{escape(name)}</h3>{plot}{legend}</figure>"


def _legend(lines: Sequence[Line]) -> str:
    items = []
    for index, line in enumerate(lines):
        style = f"line line{index % svg.COLOURS}" + (" dashed" if index >= svg.COLOURS else "")
        key = f'<svg viewBox="0 0 18 8" aria-hidden="true"><polyline class="{style}" points="0,4 18,4"/></svg>'
        items.append(f"<li>{key}{escape(line.name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _table(table: Table, *, kinds: bool = False) -> str:
    """A table; `kinds` puts the mark that an event has in the plots before its kind."""
    heads, rows = table
    if not rows:
        return "<p>Nothing.</p>"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = []
    for row in rows:
        cells = [escape(cell) for cell in row]
        if kinds and row[1] in svg.MARKED:
            line = f'<line class="mark mark-{row[1]}" x1="4" x2="4" y1="0" y2="12"/>'
            cells[1] = (
                f'<svg style="width:8px;display:inline" viewBox="0 0 8 12" aria-hidden="true">{line}</svg> {cells[1]}'
            )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
