"""`aiaas`: the commands put together, and how each of them ends.

Exit codes: 0 all right, 1 what was asked for failed, 2 it could not be tried (wrong usage, nothing answers).
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import typer

from services.cli import audit, inference, log, models, report, requests, run, stack
from services.cli.demo import demo
from services.cli.doctor import doctor
from services.cli.errors import CommandError
from shared import ending
from shared.errors import AiaasError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOCAL, _MODELS, _LOG = "The platform on this machine", "Models and requests", "The log"


def application() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        name="aiaas",
        help="AI models as a service on an event log.",
        epilog="Exit codes: 0 all right; 1 what was asked for failed; 2 it could not be tried.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in (stack.up, stack.down, stack.status, doctor, demo):
        app.command(rich_help_panel=_LOCAL)(command)
    run.add_to(app)
    app.add_typer(models.app, name="models", rich_help_panel=_MODELS)
    app.command(rich_help_panel=_MODELS)(inference.infer)
    app.add_typer(requests.app, name="requests", rich_help_panel=_MODELS)
    app.add_typer(audit.app, name="audit", rich_help_panel=_LOG)
    app.add_typer(log.dead_letters, name="dead-letters", rich_help_panel=_LOG)
    app.command(rich_help_panel=_LOG)(log.topics)
    app.command(rich_help_panel=_LOG)(report.report)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Errors are one sentence on standard error. Without arguments given it is the process's own."""
    if arguments is None:
        with ending.of_the_process():
            _run(sys.argv[1:])
    else:
        _run(arguments)


def _run(arguments: Sequence[str]) -> None:
    # A command says itself what it could not reach: without a handler, Python would print what aiokafka says of it.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    try:
        application()(arguments)
    except AiaasError as err:
        sys.stderr.write(f"aiaas: {err.message}\n")
        raise SystemExit(err.exit_code if isinstance(err, CommandError) else 1) from err


if __name__ == "__main__":
    main()
