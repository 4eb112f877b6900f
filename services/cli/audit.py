"""`aiaas audit`: the audit's own commands, on the platform that runs here or is configured.

They are loaded by name: the command line imports no service. What the running local stack says of itself goes where
they look, into the environment.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import typer

from services.cli.errors import CommandError, NotTried
from services.cli.where import running_stack

if TYPE_CHECKING:
    from types import ModuleType

_REPLAY: Final = "services.audit.replay.commands"
_COMMANDS: Final = (_REPLAY,)
"""Modules with a function `add_to`."""


def add_to(app: typer.Typer, panel: str) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, help="Run recorded requests again, and prove what was answered.")
    group.callback()(_find_the_platform)
    for name in _COMMANDS:
        _module(name).add_to(group)
    app.add_typer(group, name="audit", rich_help_panel=panel)


def backtested(model: str, candidate: int, against: int, from_: str | None, to: str | None) -> dict[str, Any]:
    """What a back-test of two versions of a model says, once the candidate has passed; its figures are shown.

    Raises:
        CommandError: it has not.
        NotTried: it could not be made.
    """
    _find_the_platform()
    commands = _module(_REPLAY)
    outcome = commands.judged(f"{model}:{candidate}", f"{model}:{against}", from_, to)
    sys.stderr.write("\n".join(commands.in_lines(outcome)) + "\n")
    if outcome.problem is not None:
        raise CommandError(f"Version {candidate} of {model} was not promoted: {outcome.problem}.")
    told: dict[str, Any] = outcome.as_map()
    return told


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        raise NotTried(f"The audit needs the package {err.name!r}: pip install 'aiaas[audit]'.") from err


def _find_the_platform() -> None:
    stack = running_stack()
    for name, value in ({} if stack is None else stack.environment).items():
        os.environ.setdefault(name, value)
