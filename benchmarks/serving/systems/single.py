"""Systems that are one command with one model: the bare server, and each peer by HTTP."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.serving.processes import Server, free_port
from benchmarks.serving.systems import HttpTarget, NotHere, environments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.serving.models import Array, Model
    from benchmarks.serving.processes import Tree

REPOSITORY = Path(__file__).parents[3]
_SERVERS = "benchmarks.serving.servers"
_START_TIMEOUT_S = 60.0


class Single:
    """A server process that serves one model by HTTP; subclasses say with which command."""

    name = ""

    def __init__(self, threads: int, directory: Path) -> None:
        self.threads = threads
        self.directory = directory
        self.server: Server | None = None
        self._target = HttpTarget("", 0, "", ())

    def start(self, model: Model) -> None:
        """Serve the model.

        Raises:
            NotHere: it can't be installed, or does not start.
        """
        self._target = self.aim(model, free_port())
        argv, env = self.command(model, self._target.port)
        self.server = Server(argv, self.directory / "logs" / f"{self.name}.log", {"PYTHONPATH": str(REPOSITORY), **env})
        self.server.wait_answers(self._target, _START_TIMEOUT_S)

    def aim(self, model: Model, port: int) -> HttpTarget:
        """Where it takes requests."""
        return HttpTarget("127.0.0.1", port, "/infer", model.bodies)

    def command(self, model: Model, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """What to run, and with which variables."""
        raise NotImplementedError

    def python(self) -> Path:
        """The Python of its environment."""
        return environments.python_of(self.name, self.directory / "peers")

    def stop(self) -> None:
        """End it."""
        if self.server is not None:
            self.server.stop()
            self.server = None

    def pause(self) -> None:
        """Stop its processes. One that has ended takes no time either: who wants to measure it again is told."""
        if self.server is not None:
            self.server.tree.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue them."""
        self.running().tree.signal(signal.SIGCONT)

    def target(self) -> HttpTarget:
        """Its one path."""
        return self._target

    def trees(self) -> dict[str, Tree]:
        """The process that was started, and all that it started."""
        server = self.running()
        return {"server": server.front, "its children": server.children}

    def runs(self) -> tuple[float, float] | None:
        """Not known."""
        return None

    def running(self) -> Server:
        """The server.

        Raises:
            NotHere: it does not run, or has ended.
        """
        if self.server is None:
            raise NotHere(f"{self.name} does not run")
        self.server.check()
        return self.server


class Bare(Single):
    """Starlette and ONNX Runtime in one process of this environment."""

    name = "bare"

    def command(self, model: Model, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """`servers/bare.py`."""
        return (sys.executable, "-m", f"{_SERVERS}.bare", str(model.path), str(port), str(self.threads)), {}


class Mosec(Single):
    """mosec."""

    name = "mosec"

    def command(self, model: Model, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """`servers/mosec_server.py`."""
        argv = (str(self.python()), "-m", f"{_SERVERS}.mosec_server", str(model.path), str(port), str(self.threads))
        return argv, {}


class LitServe(Single):
    """LitServe."""

    name = "litserve"

    def command(self, model: Model, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """`servers/litserve_server.py`."""
        argv = (str(self.python()), "-m", f"{_SERVERS}.litserve_server", str(model.path), str(port), str(self.threads))
        return argv, {}


class BentoMl(Single):
    """BentoML, which gets its requests in a form of its own."""

    name = "bentoml"

    def aim(self, model: Model, port: int) -> HttpTarget:
        """Stacked inputs there, the bare array back."""
        bodies = [json.dumps({"rows": [_stacked(row).tolist()]}).encode() for row in model.rows]
        return HttpTarget("127.0.0.1", port, "/infer", bodies, _array)

    def command(self, model: Model, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """`servers/bentoml_server.py`, by BentoML's own command."""
        python = self.python()
        argv = (str(python.parent / "bentoml"), "serve", f"{_SERVERS}.bentoml_server:Infer", "--host", "127.0.0.1")
        env = {
            "BENCH_MODEL": str(model.path),
            "BENCH_PORT": str(port),
            "BENCH_THREADS": str(self.threads),
            "BENCH_DTYPE": str(_stacked(model.rows[0]).dtype),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(self.directory / "bentoml"),
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        }
        return (*argv, "--port", str(port)), env


def _stacked(row: Mapping[str, Array]) -> Array:
    return np.concatenate(list(row.values()))


def _array(answer: str) -> Array:
    return np.asarray(json.loads(answer), dtype=np.float64)
