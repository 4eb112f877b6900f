"""`aiaas audit`: what was asked and answered, verified, explained, exported, erased and restored.

The work is done by `services.audit`, which is loaded by name, as services are: it brings packages of its own. Exit
codes: 0 all holds, 1 something does not, 2 it could not be tried.
"""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from services.cli.errors import NotTried
from services.cli.printing import Json, as_json, console, table
from services.cli.where import platform_settings
from shared.errors import AiaasError, CallerError, Unavailable

app = typer.Typer(no_args_is_help=True, help="What was asked and answered: verify it, explain it, export it.")

PublicKey = Annotated[
    str | None, typer.Option(help="The archiver's public key, in hex or a file; else the key with the checkpoints.")
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="This model's alone.")]
From = Annotated[str | None, typer.Option("--from", help="Outcomes from this time on, RFC 3339.")]
To = Annotated[str | None, typer.Option("--to", help="Outcomes before this time, RFC 3339.")]
Where = Annotated[str, typer.Option("--source", help="Where to read: kafka, archive, or both.")]


def module(name: str) -> Any:
    """A module of `services.audit`.

    Raises:
        NotTried: its packages are not installed.
    """
    try:
        return importlib.import_module(f"services.audit.{name}")
    except ModuleNotFoundError as err:
        raise NotTried(f"audit needs the package {err.name!r}: pip install 'aiaas[audit]'.") from err


def done(work: Any) -> Any:
    """The result of a coroutine. What could not be tried is exit code 2.

    Raises:
        NotTried: a server did not answer.
    """
    try:
        return asyncio.run(work)
    except Unavailable as err:
        raise NotTried(err.message) from err


@app.command("verify")
def verify(
    *,
    source: Where = "both",
    public_key: PublicKey = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="A checkpoint that you kept: shows a tail that was cut off."),
    ] = None,
    json: Json = False,
) -> None:
    """Hold the log and its archive against themselves: completeness, chain, digests, checkpoints, manifests."""
    if source not in {"kafka", "archive", "both"}:
        raise NotTried(f"--source {source}: it is kafka, archive or both.")
    report = done(
        module("verify.run").verify(
            platform_settings(),
            archive=source != "kafka",
            kafka=source != "archive",
            keys=_keys(public_key),
            known=[_checkpoint(path) for path in checkpoint or ()],
        )
    ).as_map()
    if json:
        as_json(report)
    else:
        _show(report)
    if not report["ok"]:
        raise typer.Exit(1)


def _keys(given: str | None) -> frozenset[str] | None:
    if given is None:
        return None
    try:
        text = Path(given).read_text() if Path(given).is_file() else given
        found: frozenset[str] = module("signing").public_keys(text)
    except (AiaasError, OSError, UnicodeDecodeError) as err:
        raise NotTried(f"--public-key: {err}") from err
    return found


def _checkpoint(path: Path) -> Any:
    try:
        return module("signing").decode_checkpoint(path.read_bytes())
    except (CallerError, OSError) as err:
        raise NotTried(f"--checkpoint {path}: {err}") from err


def _show(report: dict[str, Any]) -> None:
    out = console()
    shown = table("what", "count")
    for name, count in report["counts"].items():
        shown.add_row(name.replace("_", " "), str(count))
    out.print(shown)
    for note in report["notes"]:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    for broken in report["broken"]:
        out.print(
            f"[red]broken {broken['link']}[/]: {escape(broken['where'])}: {escape(broken['why'])}", soft_wrap=True
        )
    out.print("[green]everything holds[/]" if report["ok"] else "[bold red]it does not hold[/]")
