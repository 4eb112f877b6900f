"""Numbers and times as people read them, and the tables that HTML and Markdown share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from services.monitor.tally import STATUSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.monitor.report.content import Report, Version

_STEPS = ("", "k", "M", "G", "T", "P")
_LARGE, _MILLI = 1000, 1e-3
NOTHING = "–"  # noqa: RUF001 - a dash, as in print

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Heads and rows."""


def moment(at_s: float) -> str:
    """A time in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def number(value: float | None, unit: str = "") -> str:
    """A number in its unit, with three digits that matter."""
    if value is None:
        return NOTHING
    if unit == "seconds":
        return _seconds(value)
    if unit == "percent":
        return f"{value:.0f} %"
    step = 0
    scaled = float(value)
    while abs(scaled) >= _LARGE and step < len(_STEPS) - 1:
        scaled, step = scaled / _LARGE, step + 1
    text = f"{scaled:.3g}{_STEPS[step]}"
    return text + {"bytes": "B", "bytes a second": "B/s", "watts": " W", "degrees Celsius": " °C"}.get(unit, "")


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= _MILLI else f"{value * 1e6:.3g} µs"


def share(value: float | None) -> str:
    """A part of one."""
    return NOTHING if value is None else f"{value:.2%}"


def outcomes(report: Report) -> Table:
    """What came of the requests, exactly."""
    heads = ("version", "requests", *STATUSES, "errors by code", "run again", "duplicates")
    return heads, [
        (
            version.name,
            str(version.tally.requests),
            *[str(version.tally.outcomes[status]) for status in STATUSES],
            ", ".join(f"{code}: {n}" for code, n in version.tally.error_codes.items()) or NOTHING,
            str(version.tally.sum("reexecuted")),
            str(version.tally.sum("duplicates")),
        )
        for version in report.versions
    ]


def latencies(report: Report) -> Table:
    """Latency by version."""
    heads = ("version", "p50", "p95", "p99", "mean", "queue", "compute", "reply")
    return heads, [(version.name, *_latency(version)) for version in report.versions]


def _latency(version: Version) -> Sequence[str]:
    total, tally = version.tally.latency(), version.tally
    spent = [total["p50"], total["p95"], total["p99"], total["mean"]]
    spent += [tally.mean_s(phase) for phase in ("queue", "compute_infer", "compute_output")]
    return [number(each, "seconds") for each in spent]


def findings(report: Report) -> Table:
    """What follows."""
    heads = (
        "version",
        "a second",
        "capacity",
        "saturation",
        "bottleneck",
        "within the promised time",
        "with a result",
        "error budget spent",
        f"1000 requests, {report.currency}",
    )
    return heads, [(version.name, *_finding(version)) for version in report.versions]


def _finding(version: Version) -> Sequence[str]:
    found, slo = version.findings, version.findings["slo"]
    slowest, within = found["bottleneck"], number(slo["latency_s"], "seconds")
    return [
        number(found["per_s"]),
        number(found["capacity_per_s"]),
        share(found["saturation"]),
        f"{slowest['phase']} ({slowest['share']:.0%})" if slowest else NOTHING,
        f"{share(slo['latency_met'])} in {within}, {share(slo['latency_target'])} promised",
        f"{share(slo['availability'])}, {share(slo['availability_target'])} promised",
        share(slo["error_budget_spent"]),
        NOTHING if found["cost_per_1000"] is None else f"{found['cost_per_1000']:.4f}",
    ]


def events(report: Report) -> Table:
    """What happened when."""
    return ("when (UTC)", "what", ""), [(moment(each.at_s), each.kind, each.text) for each in report.events]


def batches(report: Report) -> Table:
    """Requests by the size of their batch."""
    heads = ("version", "requests by batch size")
    return heads, [
        (version.name, ", ".join(f"{size}: {n}" for size, n in sorted(version.tally.of("batch").items())) or NOTHING)
        for version in report.versions
    ]


def extremes(report: Report, section: str) -> Table:
    """Every series of a section in three numbers."""
    rows = []
    for line in report.of(section):
        there = [value for value in line.values if value is not None]
        numbers = (sum(there) / len(there), max(there), there[-1])
        rows.append((line.subject, line.name, *[number(each, line.unit) for each in numbers], line.unit))
    return ("of", "series", "mean", "most", "last", "unit"), rows


def offsets(report: Report) -> str:
    """Where in the log the counts hold."""
    at = ", ".join(f"{partition}: {offset}" for partition, offset in sorted(report.offsets.items()))
    return f"Counts are exact at these offsets of the outcome log (partition: next offset): {at or NOTHING}."
