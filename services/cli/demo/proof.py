"""The demo's proofs, by the commands that anyone has: promotions behind a back-test, and a replay at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import orjson
from rich.markup import escape

from services.cli.errors import CommandError
from services.cli.printing import activity, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from services.cli.demo.place import Place

_TIMEOUT_S: Final = 120.0
_REFUSED: Final = 1


def promote(out: Console, place: Place, model: str, version: int) -> None:
    """Promote a version if it is no worse on the requests of before.

    Raises:
        CommandError: it was refused.
    """
    done = _gated(out, place, model, version)
    out.print("".join(f"    {line}\n" for line in done.stderr.splitlines()), markup=False, soft_wrap=True, end="")
    if done.returncode:
        raise CommandError(f"Version {version} of {model} was refused.")


def refuse(out: Console, place: Place, model: str, version: int) -> None:
    """Ask for the promotion of a version that is worse, and show why it is refused.

    Raises:
        CommandError: it was not.
    """
    done = _gated(out, place, model, version)
    if done.returncode != _REFUSED:
        raise CommandError(f"Version {version} of {model} was not refused: {done.stderr.strip()}")
    why = done.stderr.strip().splitlines()[-1].removeprefix("aiaas: ")
    out.print(f"    [bold green]refused[/]: {escape(why)}", soft_wrap=True)


def _gated(out: Console, place: Place, model: str, version: int) -> subprocess.CompletedProcess[str]:
    words = ("models", "promote", model, str(version), "--gate", "backtest")
    out.print(f"  [bold]aiaas {' '.join(words)}[/]", soft_wrap=True)
    with activity(out) as say:
        say("running the recorded requests on both versions")
        return _aiaas(place, *words, "--url", place.gateway_url)


def replay(out: Console, place: Place, requests: Mapping[str, int]) -> None:
    """Run everything again that was answered, and compare every bit.

    Raises:
        CommandError: an answer was not given again.
    """
    out.print("\n[bold]9. The proof: every request again, in its batch, on the recorded bytes: aiaas audit replay[/]")
    shown = table("model", "replayed", "identical", "changed", "not reproducible", "s")
    for model, asked in requests.items():
        with activity(out) as say:
            say(f"replaying {asked} requests of {model}")
            done = _aiaas(place, "audit", "replay", "--model", model, "--json")
        if not done.stdout:
            raise CommandError(f"The replay of {model} could not run: {done.stderr.strip()}")
        found: dict[str, Any] = orjson.loads(done.stdout)
        counts = [str(found[name]) for name in ("replayed", "identical", "changed", "not_reproducible")]
        shown.add_row(model, *counts, f"{found['seconds']:.1f}")
        if done.returncode or found["identical"] != asked:
            raise CommandError(f"The replay of {model} found {found}.")
    out.print(shown)
    out.print("  [bold green]every answer was given again, bit for bit[/]")


def _aiaas(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "services.cli", *words],
        env=os.environ | place.environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
