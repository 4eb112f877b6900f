"""Printing for people on a terminal, for people behind a pipe, and for machines.

Results go to standard output, what happens on the way to standard error; so `--json | jq` sees JSON and nothing else.
Rich drops colour and live displays by itself where there is no terminal.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Tell = Callable[[str, float | None], None]
    """Says what is going on, and how much of it is done, from 0 to 1, where that is known."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
"""The option that every command with a result has."""

_PIPE_COLUMNS = 160


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or error; in a pipe wide enough for the tables here."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if terminal else _PIPE_COLUMNS)


def as_json(value: Any) -> None:
    """The result as one JSON document on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the one style that all commands use."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def size(byte_size: int) -> str:
    """Bytes for people, in binary units."""
    amount, units = float(byte_size), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    while amount >= 1024 and (larger := next(units, None)):  # noqa: PLR2004 - the binary unit itself
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


@contextmanager
def activity(out: Console) -> Iterator[Callable[[str], None]]:
    """Say what is going on: a spinner with the latest words on a terminal, a line for each change in a pipe."""
    if out.is_terminal:
        with out.status("") as status:
            yield lambda words: status.update(escape(words))
        return
    last = ""

    def say(words: str) -> None:
        nonlocal last
        if words != last:
            out.print(f"  {words}", markup=False, soft_wrap=True)
        last = words

    yield say


@contextmanager
def bar(out: Console) -> Iterator[Tell]:
    """Say what is going on and how far it is: a bar on a terminal, a line for each change in a pipe."""
    if not out.is_terminal:
        with activity(out) as say:
            yield lambda words, _fraction: say(words)
        return
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(words: str, fraction: float | None) -> None:
            total = None if fraction is None else 1.0
            progress.update(task, description=words, total=total, completed=fraction or 0.0)

        yield tell


@contextmanager
def progress() -> Iterator[Tell]:
    """A bar on a terminal, on standard error; nothing in a pipe, where the result says it all."""
    out = console(stderr=True)
    if out.is_terminal:
        with bar(out) as tell:
            yield tell
    else:
        yield lambda _words, _part: None
