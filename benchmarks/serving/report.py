"""The table and the JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.serving.rows import Row, Spread, Summary

_MOST_CPU = 5


def print_all(
    summaries: list[Summary], machine: Mapping[str, Any], missing: Mapping[str, str], notes: Mapping[str, Any]
) -> None:
    """Everything a person reads at the end."""
    out = Console(width=max(Console().width, 190), highlight=False)
    about = ("cpu", "isa", "cores", "memory_gib", "kernel", "python", "load_average_before", "commit")
    out.print(", ".join(f"{name} {machine[name]}" for name in about))
    out.print(", ".join(f"{name} {value}" for name, value in notes.items()))
    for model in dict.fromkeys(each.model for each in summaries):
        out.print(_table(model, [each for each in summaries if each.model == model]))
    for name, why in missing.items():
        out.print(f"not measured: {name}: {why}", markup=False)


def _table(model: str, lines: list[Summary]) -> Table:
    table = Table(title=f"{model}: medians of {max(each.repeats for each in lines)} repeats")
    for heading in ("system", "at"):
        table.add_column(heading)
    for heading in (
        "requests/s",
        "of bare",
        "p50 ms",
        "added",
        "p99 ms",
        "batch",
        "errors",
        "generator",
        "in Redis/s",
        "of ORT",
        "per CPU s",
    ):
        table.add_column(heading, justify="right")
    table.add_column("CPU s / 1000")
    for each in sorted(lines, key=lambda line: line.concurrency):
        table.add_row(
            each.system,
            str(each.concurrency),
            _spread(each.per_s),
            f"{each.ratio.median:.2f}" if each.ratio else "",
            f"{each.p50_ms.median:.2f}",
            f"{each.added_p50_ms.median:+.2f}" if each.added_p50_ms else "",
            f"{each.p99_ms.median:.1f}",
            f"{each.mean_batch:.1f}" if each.mean_batch else "",
            f"{each.errors}" + (f" {each.wrong} wrong" if each.wrong else ""),
            f"{each.generator_cpu_share:.0%}",
            _results(each),
            f"{each.of_ceiling.median:.2f}" if each.of_ceiling else "",
            f"{each.of_ceiling_per_cpu.median:.2f}" if each.of_ceiling_per_cpu else "",
            _cpu(each.cpu_s_per_1000),
        )
    return table


def _spread(spread: Spread) -> str:
    return f"{spread.median:.0f} ({spread.least:.0f}-{spread.most:.0f})"


def _results(each: Summary) -> str:
    if each.results_per_s is None or each.result_p50_ms is None:
        return ""
    return f"{each.results_per_s.median:.0f}, {each.result_p50_ms.median:.1f} ms"


def _cpu(by_process: Mapping[str, float]) -> str:
    largest = sorted(by_process.items(), key=lambda item: -item[1])[:_MOST_CPU]
    shown = ", ".join(f"{name} {cpu_s:.3f}" for name, cpu_s in largest if cpu_s)
    return f"{sum(by_process.values()):.3f}: {shown}"


def write(
    path: Path,
    rows: list[Row],
    summaries: list[Summary],
    machine: Mapping[str, Any],
    missing: Mapping[str, str],
    notes: Mapping[str, Any],
) -> None:
    """Everything a program reads: each slice, and what was made of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine,
        "notes": notes,
        "summaries": [asdict(each) for each in summaries],
        "slices": [asdict(row) for row in rows],
        "not_measured": missing,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
