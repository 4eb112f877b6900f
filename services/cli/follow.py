"""A version's way from its upload to ready or rejected, and the table that shows what the gate measured and chose.

The gateway knows the state, and how far the optimizer is within it. A version is looked at a few times a second until
it is settled or patience ends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from services.cli.errors import CommandError
from services.cli.printing import size, table

if TYPE_CHECKING:
    from rich.table import Table

    from services.cli.client import Gateway
    from services.cli.printing import Tell

_POLL_S = 0.3
_SETTLED = frozenset({"ready", "rejected", "retired"})
_QUALITY = ("accuracy", "rmse", "agreement", "cosine")
_ERRORS = frozenset({"rmse", "mae"})
"""Metrics of which less is better."""
"""What is shown of what was measured, the first that is there."""


def follow(gateway: Gateway, model: str, number: int, tell: Tell, *, timeout_s: float) -> dict[str, Any]:
    """Wait until a version is ready, rejected or retired; returns it as the gateway shows it.

    Raises:
        CommandError: it is not settled after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    while (version := gateway.version(model, number))["state"] not in _SETTLED:
        if time.monotonic() > deadline_s:
            raise CommandError(
                f"Version {number} of {model} is still {version['state']} after {timeout_s:g} s: "
                f"`aiaas models show {model}` tells how it goes on; does an optimizer run?"
            )
        progress = version.get("progress") or {}
        words = version.get("waits_for") or f"{model} version {number}: {version['state']}"
        tell(f"{words}, {_where(progress)}" if progress else words, progress.get("fraction"))
        time.sleep(_POLL_S)
    return version


def _where(progress: dict[str, Any]) -> str:
    """The step, how long it may still take, and the newest loss."""
    parts = [f"{progress['step']} ({progress['fraction']:.0%})"]
    if progress["remaining_s"] is not None:
        parts.append(f"about {progress['remaining_s']:.0f} s left")
    parts += [f"{name} {point['value']:.4g}" for name, point in progress["points"].items() if name.startswith("loss/")]
    return ", ".join(parts)


def variants_table(version: dict[str, Any]) -> Table:
    """Every candidate of a version: what was measured of it, and why it serves or not."""
    shown = table("variant", "verdict", "size", "speed", "rows/s", "quality", "rows a run", "why")
    for variant in version["variants"]:
        chosen = variant["name"] == version["chosen"]
        verdict = "[bold green]chosen[/]" if chosen else "[green]kept[/]"
        why = escape((version["reason"] if chosen else variant.get("reason")) or "")
        cells = _measured(variant["measurements"], variant["byte_size"])
        shown.add_row(variant["name"], verdict, *cells, str(variant["batch_cap"]), why)
    for rejection in version["rejected"]:
        measured = rejection["measurements"] or {}
        cells = _measured(measured, measured.get("byte_size") or 0)
        shown.add_row(rejection["variant"], "[yellow]rejected[/]", *cells, "", escape(rejection["reason"]))
    return shown


def _measured(measured: dict[str, Any], byte_size: int) -> list[str]:
    """Size, speed, throughput and quality, as far as they were measured."""
    return [
        size(byte_size) if byte_size else "",
        _number(measured.get("speedup"), "{:.2f}x"),
        _number(measured.get("throughput_rows_s"), "{:,.0f}"),
        quality(measured),
    ]


def quality(measured: dict[str, Any]) -> str:
    """The metric that says most, with its interval; of old measurements, the cosine."""
    found = measured.get("quality") or {}
    name = next((name for name in _QUALITY if name in found), None)
    if name is None:
        return _number(measured.get("cosine"), "cosine {:.5f}")
    estimate = found[name]
    return f"{name} {estimate['value']:.4f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def comparison(version: dict[str, Any]) -> str | None:
    """An update beside its parent, in a sentence."""
    found = version.get("comparison")
    if not found:
        return None
    own, parents = (f"{found[who]['value']:.4f}" for who in ("own", "parents"))
    rows = found["own"]["rows"]
    return f"{found['metric']} {own}, version {found['parent']} {parents}, on the same {rows} rows: {_verdict(found)}"


def _verdict(found: dict[str, Any]) -> str:
    """What the gate made of a comparison: a loss may be within what the policy allows."""
    if found["worse"]:
        return "worse than its parent, by more than the policy allows"
    gained = found["own"]["value"] - found["parents"]["value"]
    if not gained:
        return "the same as its parent"
    if (gained < 0) is (found["metric"] not in _ERRORS):
        return "worse than its parent, within what the policy allows"
    return "better than its parent"


def conversion(version: dict[str, Any]) -> str | None:
    """What a version was made of that is no ONNX file by birth, and how close it is; or what it waits for."""
    found = version.get("conversion")
    waits = str(version["waits_for"]) if version.get("waits_for") else None
    if not found:
        return waits
    if found["engine"] != "onnxruntime":
        served = f"{found['format']} that did not become ONNX, and is served by {found['engine']} as it is"
        return "; ".join(filter(None, (f"{served}: {found['problem']}", waits)))
    made = f"converted from {found['format']} ({found['how']}) to ONNX opset {found['opset']}"
    if not found["shapes"]:
        return f"{made}: no number was changed"
    shapes = "; ".join(found["shapes"])
    within = f"within {found['atol']:g} and {found['rtol']:g} of it"
    return f"{made}; run beside the original at {shapes}: at most {found['max_abs_error']:.2g} apart ({within})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
