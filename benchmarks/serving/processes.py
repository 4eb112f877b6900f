"""Processes as the measurements need them: started, asked whether they answer, stopped, continued, their CPU time read.

A server started here dies with this process (`services.cli.local.leash`), and its descendants with it at `stop`.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from benchmarks.serving.systems import NotHere
from services.cli.local import leash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.serving.systems import HttpTarget

_POLL_S = 0.1
_LAST_LINES = 15
_COMPILERS = ("C1 Compiler", "C2 Compiler")
"""Threads of OpenJDK's, by the beginning of their names."""


class Tree:
    """A process and its descendants, or one of the two alone."""

    def __init__(self, pid: int, part: Literal["all", "root", "descendants"] = "all") -> None:
        self._root = psutil.Process(pid)
        self._part = part

    def is_alive(self) -> bool:
        """Whether the process itself lives."""
        return bool(self._root.is_running() and self._root.status() != psutil.STATUS_ZOMBIE)

    def cpu_s(self) -> float:
        """User and system time so far, of all that live, and of children that have ended and were waited for."""
        total = 0.0
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def compiling_s(self) -> float:
        """CPU time so far of the compilers of Java virtual machines that live; 0 if there is none among them."""
        total = 0.0
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                total += sum(
                    thread.user_time + thread.system_time
                    for thread in process.threads()
                    if _thread_name(process.pid, thread.id).startswith(_COMPILERS)
                )
        return total

    def rss_bytes(self) -> int:
        """Resident memory; what is shared counts in each."""
        total = 0
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to each."""
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)

    def _all(self) -> list[psutil.Process]:
        roots = [] if self._part == "descendants" else [self._root]
        try:
            return roots + ([] if self._part == "root" else self._root.children(recursive=True))
        except psutil.NoSuchProcess:
            return []


class Server:
    """One server process and its descendants, with its output in a file."""

    def __init__(self, argv: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None) -> None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_path = log_path
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(leash.__file__), str(os.getpid()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.tree = Tree(self._process.pid)
        self.front = Tree(self._process.pid, "root")
        self.children = Tree(self._process.pid, "descendants")

    def wait_answers(self, target: HttpTarget, timeout_s: float) -> None:
        """Return once it answers a request with 200.

        Raises:
            NotHere: it ended, or took too long; with its last lines.
        """
        deadline_s = time.monotonic() + timeout_s
        while (why_not := refusal(target)) is not None:
            self.check()
            if time.monotonic() > deadline_s:
                raise NotHere(f"did not answer within {timeout_s:g} s ({why_not}); {self.last_lines()}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise if it has ended.

        Raises:
            NotHere: with its last lines.
        """
        if self._process.poll() is not None:
            raise NotHere(f"ended with {self._process.returncode}; {self.last_lines()}")

    def last_lines(self) -> str:
        """What it printed last."""
        lines = self._log_path.read_text(errors="replace").splitlines()
        return f"the last lines of {self._log_path}: " + " | ".join(lines[-_LAST_LINES:])

    def stop(self) -> None:
        """Kill it and its descendants: nothing here has anything to lose."""
        self.tree.signal(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def refusal(target: HttpTarget) -> str | None:
    """Why a request is not answered with 200, or None if it is."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=10)
    try:
        connection.request("POST", target.path, target.bodies[0], {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as err:
        return repr(err)
    finally:
        connection.close()
    return None if answer.status == http.client.OK else f"{answer.status} {content[:300].decode(errors='replace')}"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _thread_name(pid: int, thread_id: int) -> str:
    try:
        return Path(f"/proc/{pid}/task/{thread_id}/comm").read_text()
    except OSError:  # it has ended
        return ""
