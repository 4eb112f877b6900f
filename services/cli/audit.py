"""`aiaas audit`: what was asked and answered, verified, explained, exported, erased, backed up and restored.

The work is done by `services.audit`, which is loaded by name, as services are: it brings packages of its own. Exit
codes: 0 all holds, 1 something does not, 2 it could not be tried.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape

from services.cli.errors import NotTried
from services.cli.printing import Json, as_json, console, progress, size, table
from services.cli.where import platform_settings
from shared import logs
from shared.errors import AiaasError, CallerError, InvalidInput, Unavailable

app = typer.Typer(no_args_is_help=True, help="What was asked and answered: verify it, explain it, export it.")

PublicKey = Annotated[
    str | None, typer.Option(help="The archiver's public key, in hex or a file; else the key with the checkpoints.")
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="This model's alone.")]
From = Annotated[str | None, typer.Option("--from", help="Outcomes from this time on, RFC 3339.")]
To = Annotated[str | None, typer.Option("--to", help="Outcomes before this time, RFC 3339.")]
Where = Annotated[
    str,
    typer.Option(
        "--source", help="Where to read: auto (what is archived from the archive, the rest from Kafka), kafka, archive."
    ),
]


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
        with logs.of_a_command():
            return asyncio.run(work)
    except Unavailable as err:
        raise NotTried(err.message) from err


def models_as_of(time: str) -> list[dict[str, Any]]:
    """All models as they were at a time: from Kafka, which keeps the registry's log for ever, else from the archive."""
    try:
        found: list[dict[str, Any]] = done(module("commands").models_as_of(platform_settings(), time))
    except InvalidInput as err:
        raise NotTried(f"--as-of: {err.message}.") from err
    return found


@app.command("verify")
def verify(
    *,
    source: Annotated[str, typer.Option(help="What to look at: kafka, archive, or both.")] = "both",
    public_key: PublicKey = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Checkpoints that you kept, one a line: they show a tail that was cut off.",
        ),
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
            known=[kept for path in checkpoint or () for kept in _kept(path)],
        )
    ).as_map()
    if json:
        as_json(report)
    else:
        _show(report)
    if not report["ok"]:
        raise typer.Exit(1)


@app.command("explain")
def explain(
    *,
    request: Annotated[str, typer.Option("--request", "-r", help="The request's id.")],
    model: Model = None,
    source: Where = "auto",
    json: Json = False,
) -> None:
    """Which version answered a request, and why: from the log alone."""
    try:
        found = done(module("commands").explained(platform_settings(), source, request, model))
    except InvalidInput as err:
        raise NotTried(err.message) from err
    if json:
        as_json(found)
        return
    out = console()
    for each in found:
        at = each["request"]
        out.print(
            f"request {each['request_id']} of {at['topic']}/{at['partition']} offset {at['offset']}", markup=False
        )
        version = f"version {each['version']}, {each['variant']}" if each["variant"] else f"version {each['version']}"
        out.print(f"  {each['status']} by {each['model']} {version}, at {each['completed_at']}", markup=False)
        out.print(f"  why: {each['why']}", markup=False, soft_wrap=True)
        if event := each["decided_by"]:
            out.print(f"  {event['event']} at offset {event['offset']}, {event['at']}", markup=False)
        if each["agrees"] is not None:
            out.print(f"  choosing again gives {'the same' if each['agrees'] else 'ANOTHER version'}")


@app.command("export")
def export(
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="Whose requests and results.")],
    out: Annotated[Path, typer.Option(help="A directory that is not there yet, or a file that ends in .zip.")],
    since: From = None,
    until: To = None,
    json: Json = False,
) -> None:
    """Write a bundle that anyone can verify with the Python standard library alone."""
    if out.exists():
        raise NotTried(f"{out} is there already.")
    found = done(module("commands").exported(platform_settings(), model, since, until, out))
    if json:
        as_json(found)
        return
    console().print(f"{found['requests']} requests of {model} in {out}; python3 verify.py in it verifies them")
    for absent in found["absent"]:
        console().print(f"not in it: {absent}", markup=False, soft_wrap=True)


@app.command("erase")
def erase(
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="Whose requests.")],
    request: Annotated[list[str] | None, typer.Option("--request", "-r", help="A request's id; several times.")] = None,
    tenant: Annotated[str | None, typer.Option(help="All requests of this tenant.")] = None,
    json: Json = False,
) -> None:
    """Erase requests and their results from the archive. Receipts and digests stay; there is no way back."""
    if not request and tenant is None:
        raise NotTried("Whose requests? Name --request or --tenant.")
    count = done(module("commands").erased(platform_settings(), model, request or [], tenant))
    if json:
        as_json({"erased": count})
    else:
        console().print(f"{count} requests erased from the archive; Kafka and Redis keep theirs until these expire")


@app.command("checkpoints")
def checkpoints() -> None:
    """The newest checkpoint of each log, one a line: keep them, they bind all that was before."""
    for checkpoint in done(module("commands").checkpoints(platform_settings())):
        sys.stdout.write(orjson.dumps(checkpoint).decode() + "\n")


@app.command("backup")
def backup(
    *,
    to: Annotated[str, typer.Option(help="The URL of the copy: file:///…, s3://…; made, or brought up to date.")],
    json: Json = False,
) -> None:
    """Copy the artifact store, archive and all, in the order in which nothing is named that is not there."""
    try:
        with progress() as tell:
            found = done(module("commands").backed_up(platform_settings(), to, tell))
    except AiaasError as err:
        raise NotTried(f"{err.code}: {err.message}") from err
    if json:
        as_json(asdict(found))
    else:
        out, copied = console(), f"{found.objects} objects and {found.files} files of the archive"
        out.print(f"copied {copied}, {size(found.byte_size)}; {found.there} were there", markup=False, soft_wrap=True)
        if found.removed:
            out.print(f"removed {found.removed} files that the archive has erased", markup=False)
        for key in found.damaged:
            out.print(f"[red]not copied[/]: {escape(key)} is not what its name says", soft_wrap=True)
    if found.damaged:
        raise typer.Exit(1)


@app.command("restore")
def restore(*, json: Json = False) -> None:
    """Put the registry's log back into an empty Kafka, from the archive: offsets and times as they were."""
    count = done(module("commands").restored(platform_settings()))
    if json:
        as_json({"restored": count})
    else:
        console().print(f"{count} records of the registry's log are back")


def _keys(given: str | None) -> frozenset[str] | None:
    if given is None:
        return None
    try:
        text = Path(given).read_text() if Path(given).is_file() else given
        found: frozenset[str] = module("signing").public_keys(text)
    except (AiaasError, OSError, UnicodeDecodeError) as err:
        raise NotTried(f"--public-key: {err}") from err
    return found


def _kept(path: Path) -> list[Any]:
    """The checkpoints in a file, one a line."""
    try:
        return [module("signing").decode_checkpoint(line) for line in path.read_bytes().splitlines() if line]
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
