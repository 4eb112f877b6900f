"""`aiaas models export` and `configure`: a version as a file of another format, and how workers run it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from services.cli.client import Gateway, Url
from services.cli.errors import CommandError
from services.cli.printing import Json, as_json, bar, console, size, table

if TYPE_CHECKING:
    from services.cli.printing import Tell

_POLL_S: Final = 0.3
_FORMATS: Final = "onnx, pt2, torchscript, savedmodel or bundle"


def export(
    what: Annotated[str, typer.Argument(metavar="MODEL[:VERSION]", help="Without a version: the one that answers.")],
    *,
    file_format: Annotated[str, typer.Option("--format", "-f", help=f"{_FORMATS}.")] = "onnx",
    out: Annotated[Path, typer.Option("--out", "-o", dir_okay=False, help="The file to write.")],
    variant: Annotated[
        str | None, typer.Option(help="Of those that passed the gate; else the one that serves, or fp32.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="Wait for so many seconds at most.")] = 600.0,
    url: Url = None,
    json: Json = False,
) -> None:
    """Write a version as a file, once an optimizer has built it and held its answers against ONNX Runtime's.

    A bundle is a zip of the model, its steps before and after, their files, its configuration and its provenance.
    """
    model, _, number = what.partition(":")
    with Gateway(url) as gateway:
        version = _number(number) if number else _active(gateway, model)
        asked = gateway.export(model, version, file_format, variant)
        with bar(console(stderr=True)) as tell:
            made = _follow(gateway, asked, tell, timeout_s)
            tell(f"writing {out}", None)
            _write(gateway, made, out)
    if json:
        as_json({**made, "file": str(out)})
        return
    said = f"{out}: {model} version {version} ({made['variant']}) as {file_format}, {size(made['byte_size'])}"
    console().print(said, markup=False, soft_wrap=True)
    for each in made["parity"]:
        line = (
            f"  {each['batch_size']} rows: {each['max_abs_error']:.2g} from ONNX Runtime, up to {each['tolerance']:g}"
        )
        console().print(line, markup=False)


def configure(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The configuration, JSON in Triton's words.")
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="This version alone; else all of them.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Leave all of it to the workers again.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Say how workers run a model (docs/runtime.md): no request fails of it. Without options: what is configured."""
    path = "config" if version is None else f"versions/{version}/config"
    with Gateway(url) as gateway:
        if reset:
            gateway.configure(model, path, b"{}")
        elif file is not None:
            gateway.configure(model, path, file.read_bytes())
        shown = gateway.config(model, version)
    if json:
        as_json(shown)
        return
    said = {
        name: shown[name]
        for name in ("max_batch_size", "instance_group", "parameters", "optimization")
        if name in shown
    }
    for name, value in said.items():
        console().print(f"{name}: {value}", markup=False, soft_wrap=True)
    held = table("worker", "engine", "provider", "threads", "configured")
    for worker in shown["workers"]:
        cells = (worker[name] for name in ("instance", "engine", "provider", "threads"))
        held.add_row(*(str(cell) for cell in cells), "yes" if worker["configured"] else "not yet")
    console().print(held)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise CommandError(f"{text!r} is no version: MODEL:VERSION, as in digits:2.")
    return int(text)


def _active(gateway: Gateway, model: str) -> int:
    active = gateway.versions(model)["active"]
    if active is None:
        raise CommandError(f"No version of {model} answers: say which, as in {model}:1.")
    return int(active)


def _follow(gateway: Gateway, export: dict[str, Any], tell: Tell, timeout_s: float) -> dict[str, Any]:
    """Wait until it is ready.

    Raises:
        CommandError: it was rejected, or is not ready after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    while export["state"] in ("queued", "building"):
        if time.monotonic() > deadline_s:
            raise CommandError(f"The export is still {export['state']} after {timeout_s:g} s: does an optimizer run?")
        tell(f"{export['name']} version {export['version']} as {export['format']}: {export['state']}", None)
        time.sleep(_POLL_S)
        export = gateway.get(export["status_url"])
    if export["state"] != "ready":
        raise CommandError(f"It can't be had as {export['format']} ({export['code']}): {export['reason']}")
    return export


def _write(gateway: Gateway, made: dict[str, Any], out: Path) -> None:
    """The file, whole and with the digest that was told, or not at all."""
    digest = hashlib.sha256()
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            for chunk in gateway.download(made["file_url"]):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != made["sha256"]:
            raise CommandError(f"What arrived is not the export: its SHA-256 is {digest.hexdigest()}.")
        part.replace(out)
    except OSError as err:
        raise CommandError(f"{out}: {err.strerror or err}.") from err
    finally:
        part.unlink(missing_ok=True)
