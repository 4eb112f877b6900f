"""The bare server: `servers/bare.py` in this environment."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.serving.processes import Server, free_port
from benchmarks.serving.systems import HttpTarget, NotHere

if TYPE_CHECKING:
    from benchmarks.serving.models import Model
    from benchmarks.serving.processes import Tree

SERVERS = Path(__file__).parents[1] / "servers"
_START_TIMEOUT_S = 60.0


class Bare:
    """One model behind Starlette, in one process."""

    name = "bare"

    def __init__(self, threads: int, logs: Path) -> None:
        self._threads = threads
        self._logs = logs
        self._server: Server | None = None
        self._target = HttpTarget("127.0.0.1", 0, "/infer", ())

    def start(self, model: Model) -> None:
        """Serve the model."""
        self._target = HttpTarget("127.0.0.1", free_port(), "/infer", model.bodies)
        argv = [sys.executable, str(SERVERS / "bare.py"), str(model.path), str(self._target.port), str(self._threads)]
        self._server = Server(argv, self._logs / "bare.log")
        self._server.wait_answers(self._target, _START_TIMEOUT_S)

    def stop(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def pause(self) -> None:
        """Stop the process."""
        self._running().tree.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it."""
        self._running().tree.signal(signal.SIGCONT)

    def target(self) -> HttpTarget:
        """Its one path."""
        return self._target

    def trees(self) -> dict[str, Tree]:
        """Its one process."""
        return {"server": self._running().tree}

    def runs(self) -> tuple[float, float] | None:
        """A row a run, which needs no counting."""
        return None

    def _running(self) -> Server:
        if self._server is None:
            raise NotHere("the bare server does not run")
        return self._server
