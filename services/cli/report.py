"""`aiaas report`: what happened between two moments, as the monitor tells it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import httpx
import typer

from services.cli.errors import NotTried, Refused
from services.cli.printing import console
from services.cli.trust import trust
from services.cli.where import monitor_url

Form = Literal["html", "md", "csv", "parquet", "tensorboard"]
_TIMEOUT_S = 120.0
_PREFIX = "events.out.tfevents."


def report(
    *,
    begin: Annotated[
        str, typer.Option("--from", help="RFC 3339, Unix seconds, or a time before now: 15m, 2h, 1d.")
    ] = "1h",
    end: Annotated[str | None, typer.Option("--to", help="The same; by default now.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    form: Annotated[Form, typer.Option("--format", help="What kind of file.")] = "html",
    out: Annotated[Path | None, typer.Option(help="Where to; by default report.html (or .md, …) here.")] = None,
    url: Annotated[
        str | None, typer.Option(envvar="AIAAS_MONITOR_URL", help="The monitor; by default the stack's that runs.")
    ] = None,
) -> None:
    """What happened: outcomes, latency, throughput, hosts, drift and events, with plots, as one file."""
    content = fetch(monitor_url(url), begin, end, model, form)
    path = out or Path(_PREFIX + "aiaas" if form == "tensorboard" else f"report.{form}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as err:
        raise NotTried(f"{path} can't be written: {err}.") from err
    console().print(f"{path} ({len(content):,} bytes)", soft_wrap=True, highlight=False)


def fetch(monitor: str, begin: str, end: str | None, model: str | None, form: str) -> bytes:
    """The report's bytes.

    Raises:
        NotTried: no monitor answers.
        Refused: it answers with an error.
    """
    asked = {"from": _moment(begin), "to": end and _moment(end), "model": model, "format": form}
    key = os.environ.get("AIAAS_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=monitor, timeout=_TIMEOUT_S, verify=trust(), headers=headers) as http:
            answer = http.get("/v1/report", params={name: value for name, value in asked.items() if value})
    except httpx.TransportError as err:
        raise NotTried(f"No monitor answers at {monitor} ({err}): start one, or name it with --url.") from err
    if answer.is_error:
        told = answer.headers.get("content-type", "").startswith("application/json")
        said = answer.json()["error"] if told else f"The monitor answered {answer.status_code}."
        raise Refused(said, answer.status_code)
    return answer.content


def _moment(text: str) -> str:
    """`2h` is two hours before now; a minus sign would look like another option."""
    return f"-{text}" if text[:1].isdigit() and text[-1:] in "smhd" else text
