"""A version's way from its upload to ready or rejected, and the table that shows what the gate measured and chose.

The gateway knows the state; how far the optimizer is within it is known to the monitor alone, which is asked as long as
it answers. A version is looked at a few times a second until it is settled or patience ends.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import httpx
from rich.markup import escape

from services.cli.errors import CommandError
from services.cli.printing import size, table
from services.cli.trust import trust
from services.cli.where import running_stack

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from services.cli.client import Gateway

_POLL_S = 0.3
_MONITOR_TIMEOUT_S = 1.0
_SETTLED = frozenset({"ready", "rejected", "retired"})


def follow(
    gateway: Gateway,
    model: str,
    number: int,
    say: Callable[[str], None],
    *,
    timeout_s: float,
    monitor_url: str | None = None,
) -> dict[str, Any]:
    """Wait until a version is ready, rejected or retired; returns it as the gateway shows it.

    Raises:
        CommandError: it is not settled after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    with httpx.Client(base_url=monitor_url or _monitor_url(), timeout=_MONITOR_TIMEOUT_S, verify=trust()) as monitor:
        while (version := gateway.version(model, number))["state"] not in _SETTLED:
            if time.monotonic() > deadline_s:
                raise CommandError(
                    f"Version {number} of {model} is still {version['state']} after {timeout_s:g} s: "
                    f"`aiaas models show {model}` tells how it goes on; does an optimizer run?"
                )
            step = _step(monitor, model, number) if version["state"] == "optimizing" else None
            say(f"{model} version {number}: {version['state']}{f', {step}' if step else ''}")
            time.sleep(_POLL_S)
    return version


def variants_table(version: dict[str, Any]) -> Table:
    """Every candidate of a version: what was measured of it, and why it serves or not."""
    shown = table("variant", "verdict", "size", "speed", "max error", "cosine", "top-1", "rows a run", "why")
    for variant in version["variants"]:
        chosen = variant["name"] == version["chosen"]
        verdict = "[bold green]chosen[/]" if chosen else "[green]passed[/]"
        why = escape(version["reason"] or "") if chosen else ""
        cells = _measured(variant["measurements"], variant["byte_size"])
        shown.add_row(variant["name"], verdict, *cells, str(variant["batch_cap"]), why)
    for rejection in version["rejected"]:
        measured = rejection["measurements"] or {}
        cells = _measured(measured, measured.get("byte_size") or 0)
        shown.add_row(rejection["variant"], "[yellow]rejected[/]", *cells, "", escape(rejection["reason"]))
    return shown


def _measured(measured: dict[str, Any], byte_size: int) -> list[str]:
    """Size, speed, error, cosine and agreement, as far as they were measured."""
    return [
        size(byte_size) if byte_size else "",
        _number(measured.get("speedup"), "{:.2f}x"),
        _number(measured.get("max_abs_error"), "{:.2g}"),
        _number(measured.get("cosine"), "{:.5f}"),
        _number(measured.get("top1_agreement"), "{:.3f}"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _monitor_url() -> str:
    stack = running_stack()
    return (
        os.environ.get("AIAAS_MONITOR_URL") or (stack.urls.get("monitor") if stack else None) or "http://127.0.0.1:8090"
    )


def _step(monitor: httpx.Client, model: str, number: int) -> str | None:
    """The optimizer's step, from the monitor; None if it says nothing."""
    try:
        jobs = monitor.get("/v1/stats").raise_for_status().json()["jobs"]
    except (httpx.HTTPError, ValueError, KeyError):
        return None  # the state is enough to go on with
    latest = max((job for job in jobs if (job["model"], job["version"]) == (model, number)), key=_when, default=None)
    return f"{latest['step']} ({latest['fraction']:.0%})" if latest else None


def _when(job: dict[str, Any]) -> int:
    at_ns: int = job["at_ns"]
    return at_ns
