"""The report in Markdown: words and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.monitor.report import wording
from services.monitor.report.content import SECTIONS

if TYPE_CHECKING:
    from services.monitor.report.content import Report
    from services.monitor.report.wording import Table

_SPECIAL = str.maketrans({"\n": " ", "\r": " ", "<": "&lt;", **{sign: f"\\{sign}" for sign in "|`*_["}})


def render(report: Report) -> bytes:
    """The document."""
    span = report.span
    parts = [
        f"# aiaas report{f' on {report.model}' if report.model else ''}",
        f"{wording.moment(span.start_s)} to {wording.moment(span.end_s)} UTC, in windows of {span.step_s} s.",
        wording.offsets(report),
        f"Refused at the door (429, 503): {report.refused}.",
        *_part("What happened when", wording.events(report)),
        *_part("Outcomes", wording.outcomes(report)),
        *_part("Findings", wording.findings(report)),
    ]
    for section, title in SECTIONS.items():
        if section == "latency":
            parts += _part(title, wording.latencies(report))
            parts += _table(wording.extremes(report, section))
        else:
            parts += _part(title, wording.extremes(report, section))
        if section == "throughput":
            parts += _table(wording.batches(report))
    return ("\n\n".join(parts) + "\n").encode()


def _part(title: str, table: Table) -> list[str]:
    return [f"## {title}", *_table(table)]


def _table(table: Table) -> list[str]:
    heads, rows = table
    if not rows:
        return ["Nothing was measured."]
    lines = [heads, tuple("---" for _ in heads), *[tuple(cell.translate(_SPECIAL) for cell in row) for row in rows]]
    return ["\n".join("| " + " | ".join(line) + " |" for line in lines)]
