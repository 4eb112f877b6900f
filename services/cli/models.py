"""`aiaas models`: upload a version and follow it through the gate, see what is there, decide which versions answer."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from services.cli import audit, exports, provenance, replays, updates
from services.cli.client import Gateway, Url
from services.cli.convert.command import convert
from services.cli.errors import CommandError, NotTried
from services.cli.follow import comparison, conversion, follow, variants_table
from services.cli.printing import Json, as_json, bar, console, size, table
from services.cli.processing import stored

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(no_args_is_help=True, help="Models: upload versions, look at them, decide which of them answer.")

Model = Annotated[str, typer.Argument(help="The model's name.")]
app.command("update")(updates.update)
app.command("cancel")(updates.cancel)
app.command("policy")(updates.policy)
app.command("convert")(convert)
app.command("export")(exports.export)
app.command("configure")(exports.configure)
Number = Annotated[int, typer.Argument(min=1, help="The version's number.")]
_CHUNK_BYTES = 1024 * 1024


@app.command("upload")
def upload(
    file: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, readable=True, help="A model; docs/formats.md lists formats."),
    ],
    *,
    name: Annotated[str, typer.Option("--name", "-n", help="The model's name.")],
    version: Annotated[int | None, typer.Option(min=1, help="Ask for this number; else the next one.")] = None,
    processing: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A JSON file: the steps before and after the model."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A JSON file: how workers run it (docs/runtime.md)."),
    ] = None,
    data: updates.Data = None,
    evaluation: updates.Evaluation = None,
    objective: updates.Objective = None,
    max_loss: updates.MaxLoss = None,
    time_budget_s: updates.TimeBudget = None,
    candidates: updates.Candidates = None,
    seed: updates.Seed = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it is ready or rejected.")] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="Follow it for so many seconds at most.")] = 600.0,
    url: Url = None,
    json: Json = False,
) -> None:
    """Upload a version. With --wait: exit code 1 if it is rejected, and the gate's measurements if it is ready."""
    with Gateway(url) as gateway:
        declared = None if processing is None else stored(gateway, processing)
        policy = updates.policy_of(objective, max_loss, time_budget_s)
        options = updates.options_of(
            gateway, data=data, evaluation=evaluation, candidates=candidates, seed=seed, policy=policy
        )
        asked = {"version": version, "processing": declared, "optimization": updates.stored_options(gateway, options)}
        asked["config"] = None if config is None else updates.stored(gateway, config)["sha256"]
        uploaded = _upload(gateway, file, name, asked)
        number = uploaded["version"]
        if not wait:
            _show_uploaded(uploaded, json=json)
            return
        with bar(console(stderr=True)) as tell:
            settled = follow(gateway, name, number, tell, timeout_s=timeout_s)
    show_settled(settled, json=json)


@app.command("list")
def list_models(
    *,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="As they were at this time (RFC 3339), from the log itself.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """All models, and which of their versions answer."""
    if as_of is None:
        with Gateway(url) as gateway:
            models = gateway.models()
    else:
        models = audit.models_as_of(as_of)
    if json:
        as_json(models)
        return
    shown = table("model", "answers", "versions")
    for model in models:
        versions = ", ".join(f"{each['version']} {each['state']}" for each in model["versions"])
        shown.add_row(model["name"], _who_answers(model), versions)
    console().print(shown if models else "no models yet: aiaas models upload FILE --name NAME --wait")


@app.command("show")
def show(
    model: Model,
    *,
    version: Annotated[int | None, typer.Option(min=1, help="This version alone, with all that was measured.")] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """A model's versions, or one version with every variant, its measurements, and why it serves or not."""
    with Gateway(url) as gateway:
        found = gateway.versions(model) if version is None else gateway.version(model, version)
    if json:
        as_json(found)
        return
    versions = found["versions"] if version is None else [found]
    for each in versions:
        _show_version(each)
    if version is None:
        console().print(provenance.tree(found))
        console().print(f"{model} answers with: {_who_answers(found)}")


@app.command("promote")
def promote(
    model: Model,
    version: Number,
    *,
    gate: Annotated[
        Literal["backtest"] | None,
        typer.Option(help="Only if recorded requests show it to be no worse than the version that answers now."),
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", help="With --gate: requests from this moment on.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="With --gate: requests before this moment.")] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """From now on this version answers requests that name none. With --gate: exit code 1 if it is refused."""
    if gate is not None:
        with Gateway(url) as gateway:
            active = gateway.versions(model)["active"]
        if active is None:
            raise NotTried(f"No version of {model} answers now, so there is nothing to hold version {version} against.")
        replays.pass_backtest(model, version, active, from_, to)
    _change(model, f"versions/{version}/promote", url=url, json=json)


@app.command("rollback")
def rollback(model: Model, *, url: Url = None, json: Json = False) -> None:
    """The version that was active before answers again; a traffic split ends."""
    _change(model, "rollback", url=url, json=json)


@app.command("traffic")
def traffic(
    model: Model,
    shares: Annotated[list[str], typer.Argument(help="VERSION=WEIGHT, as in `1=90 2=10`; `none` ends the split.")],
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """Spread requests that name no version over several, by weight."""
    _change(model, "traffic", {"weights": parse_shares(shares)}, url=url, json=json)


@app.command("retire")
def retire(
    model: Model,
    *,
    version: Annotated[int | None, typer.Option(min=1, help="This version alone; else the whole model.")] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """A version, or the whole model, answers no more."""
    _change(model, "retire" if version is None else f"versions/{version}/retire", url=url, json=json)


@app.command("unload")
def unload(model: Model, *, url: Url = None, json: Json = False) -> None:
    """A model answers no more, and workers let go of it, until it is loaded. Its versions are kept."""
    _change(model, "unload", url=url, json=json)


@app.command("load")
def load(model: Model, *, url: Url = None, json: Json = False) -> None:
    """An unloaded model answers again; returns when workers hold it."""
    _change(model, "load", url=url, json=json)


def show_settled(version: dict[str, Any], *, json: bool = False) -> None:
    """A version that is ready or rejected.

    Raises:
        CommandError: it was rejected.
    """
    if json:
        as_json(version)
    elif version["state"] == "ready":
        _show_version(version)
    if version["state"] != "ready":
        why = version["reason"] or "no reason is known"
        raise CommandError(f"Version {version['version']} of {version['name']} was {version['state']}: {why}")


def parse_shares(shares: list[str]) -> dict[str, int]:
    """`["1=90", "2=10"]` as weights by version; `["none"]` is the empty split."""
    if shares == ["none"]:
        return {}
    weights = {}
    for share in shares:
        version, _, weight = share.partition("=")
        if not (version.isdecimal() and weight.isdecimal()):
            raise NotTried(f"{share!r} is not VERSION=WEIGHT: as in `aiaas models traffic MODEL 1=90 2=10`, or `none`.")
        weights[version] = int(weight)
    return weights


def _upload(gateway: Gateway, file: Path, name: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Stream the file with a progress bar, which shows only on a terminal."""
    out = console(stderr=True)
    byte_size = file.stat().st_size
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(f"uploading {file.name}", total=byte_size)
        content = _chunks(file, lambda count: progress.advance(task, count))
        return gateway.upload(name, content, byte_size, **asked)


def _chunks(file: Path, sent: Any) -> Iterator[bytes]:
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            yield chunk
            sent(len(chunk))


def _show_uploaded(uploaded: dict[str, Any], *, json: bool) -> None:
    if json:
        as_json(uploaded)
        return
    name, number = uploaded["name"], uploaded["version"]
    console().print(f"{name} version {number} is {uploaded['state']}: aiaas models show {name} --version {number}")


def _change(model: str, what: str, body: dict[str, Any] | None = None, *, url: str | None, json: bool) -> None:
    with Gateway(url) as gateway:
        routing = gateway.change(model, what, body)
    if json:
        as_json(routing)
    else:
        console().print(f"{model} answers with: {_who_answers(routing)}")


def _who_answers(routing: dict[str, Any]) -> str:
    if routing.get("retired"):
        return "nothing, it is retired"
    if routing.get("unloaded"):
        return "nothing, it is unloaded"
    total = sum(routing["weights"].values())
    if total:
        return ", ".join(f"version {n} ({weight / total:.0%})" for n, weight in routing["weights"].items())
    return f"version {routing['active']}" if routing["active"] else "nothing yet"


def _show_version(version: dict[str, Any]) -> None:
    out = console()
    what = f"{version['name']} version {version['version']}: {version['state']}"
    if version["state"] == "rejected":
        what += f" ({version['code']}): {version['reason']}"
    out.print(f"{what}, {size(version['byte_size'])} uploaded {version['uploaded_at']}", markup=False, soft_wrap=True)
    if (converted := conversion(version)) is not None:
        out.print(converted, markup=False, soft_wrap=True)
    if version.get("runtime"):
        out.print(f"configured: {version['runtime']}", markup=False, soft_wrap=True)
    if version["variants"] or version["rejected"]:
        out.print(variants_table(version))
    if (compared := comparison(version)) is not None:
        out.print(compared, markup=False, soft_wrap=True)
    out.print()
