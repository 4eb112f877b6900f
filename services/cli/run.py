"""`aiaas gateway | worker | optimizer | monitor | archiver`: one service in this process, by its variables."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from services.cli.errors import NotTried

if TYPE_CHECKING:
    from collections.abc import Callable

    import typer

_EXTRAS = {
    "gateway": "gateway",
    "worker": "worker,cpu",
    "optimizer": "optimizer,cpu",
    "monitor": "monitor",
    "archiver": "audit",
}
_PACKAGES = {"archiver": "audit"}
"""Where a service does not lie in the package of its name."""


def add_to(app: typer.Typer) -> None:
    """Add one command a service."""
    for name in _EXTRAS:
        app.command(name, help=f"Run the {name} in the foreground.", rich_help_panel="One service")(_runs(name))


def _runs(name: str) -> Callable[[], None]:
    def run() -> None:
        try:
            service = importlib.import_module(f"services.{_PACKAGES.get(name, name)}.__main__")
        except ModuleNotFoundError as err:
            raise NotTried(f"The {name} needs the package {err.name!r}: pip install 'aiaas[{_EXTRAS[name]}]'.") from err
        service.main()

    return run
