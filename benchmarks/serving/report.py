"""The table and the JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
    """One line a case; a column that nobody fills is left out."""
    table = Table(title=f"{model}: medians of {max(each.repeats for each in lines)} repeats (least-most)")
    ordered = sorted(lines, key=lambda line: line.concurrency)
    columns = {heading: [cell(each) for each in ordered] for heading, cell in _COLUMNS.items()}
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    for heading in shown:
        table.add_column(heading, justify="left" if heading in _WORDS else "right")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    return table


def _spread(spread: Spread) -> str:
    return f"{spread.median:.0f} ({spread.least:.0f}-{spread.most:.0f})"


def _number(spread: Spread | None, form: str) -> str:
    return format(spread.median, form) if spread else ""


def _cpu(by_process: Mapping[str, float]) -> str:
    largest = sorted(by_process.items(), key=lambda item: -item[1])[:_MOST_CPU]
    shown = ", ".join(f"{name} {cpu_s:.3f}" for name, cpu_s in largest if cpu_s)
    return f"{sum(by_process.values()):.3f}: {shown}"


_WORDS = frozenset({"system", "CPU s / 1000"})
_COLUMNS: dict[str, Callable[[Summary], str]] = {
    "system": lambda each: each.system,
    "at": lambda each: str(each.concurrency),
    "requests/s": lambda each: _spread(each.per_s),
    "of bare": lambda each: _number(each.ratio, ".2f"),
    "of ORT": lambda each: _number(each.of_ceiling, ".2f"),
    "of ORT per CPU s": lambda each: _number(each.of_ceiling_per_cpu, ".2f"),
    "p50 ms": lambda each: _number(each.p50_ms, ".2f"),
    "added": lambda each: _number(each.added_p50_ms, "+.2f"),
    "p99 ms": lambda each: _number(each.p99_ms, ".1f"),
    "batch": lambda each: f"{each.mean_batch:.1f}" if each.mean_batch else "",
    "in Redis/s": lambda each: _number(each.results_per_s, ".0f"),
    "p50 ms to Redis": lambda each: _number(each.result_p50_ms, ".1f"),
    "errors": lambda each: f"{each.errors or ''}" + (f" {each.wrong} wrong" if each.wrong else ""),
    "generator": lambda each: f"{each.generator_cpu_share:.0%}",
    "CPU s / 1000": lambda each: _cpu(each.cpu_s_per_1000),
}
"""`at` is callers at a time, for `drained` how many were produced beforehand, for `onnxruntime` the batch size."""


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
