"""Starting processes so that none outlives the stack.

Every process leads its own session and process group: a Ctrl-C on the terminal reaches the stack alone, which then
drains in order, and what a child started itself can be killed with it. A leash ties it to our own life, a warden's list
covers its descendants (see `leash.py` and `warden.py`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from services.cli.local import child_logs
from services.cli.local.errors import CommandFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import Self

_HERE = Path(__file__).parent
_PYTHON = (sys.executable, "-I", "-S")


class Processes:
    """The processes of one stack, and the warden that watches over them; entered for as long as any may run."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._warden: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._warden = self._start_warden()
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill what is left: with the pipe closed the warden does, and ends."""
        warden, self._warden = self._warden, None
        if warden is not None:
            _stdin(warden).close()
            warden.wait()

    @asynccontextmanager
    async def started(
        self, argv: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """A process and its group; both are gone at the end, by SIGKILL if need be."""
        output = child_logs.open_for_child(log_path)
        try:
            process = await asyncio.create_subprocess_exec(
                *_PYTHON,
                str(_HERE / "leash.py"),
                str(os.getpid()),
                *argv,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        try:
            self._tell("+", process.pid)
            yield process
        finally:
            await self._end(process)

    async def run(
        self, argv: Sequence[str], log_path: Path, timeout_s: float, env: Mapping[str, str] | None = None
    ) -> None:
        """Run a command to its end.

        Raises:
            CommandFailedError: it exited with anything but 0 or took too long; with its last lines.
        """
        name = Path(argv[0]).name
        try:
            async with asyncio.timeout(timeout_s), self.started(argv, log_path, env) as process:
                exit_code = await process.wait()
        except TimeoutError as err:
            raise CommandFailedError(_failed(f"{name} took more than {timeout_s:g} s", log_path)) from err
        if exit_code:
            raise CommandFailedError(_failed(f"{name} {describe_exit(exit_code)}", log_path))

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        # The group's id stays taken while a member lives, and ids are not reused within the moment after that.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._tell("-", process.pid)
        await process.wait()

    def _start_warden(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own script
            [*_PYTHON, str(_HERE / "warden.py")], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def _tell(self, change: str, group: int) -> None:
        (self._groups.add if change == "+" else self._groups.discard)(group)
        if self._warden is None:
            return  # it has ended, and killed this group before it did
        try:
            _write(self._warden, f"{change}{group}\n")
        except BrokenPipeError:  # someone killed the warden: its successor gets the whole list
            self._warden.wait()
            self._warden = self._start_warden()
            _write(self._warden, "".join(f"+{group}\n" for group in self._groups))


def describe_exit(exit_code: int) -> str:
    """`exited with 1` or `was killed by SIGKILL`."""
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited with {exit_code}"


def _failed(what: str, log_path: Path) -> str:
    return f"{what}; the last lines of {log_path}:\n{child_logs.tail(log_path)}"


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise RuntimeError("the warden was started without a pipe")
    return process.stdin


def _write(process: subprocess.Popen[bytes], text: str) -> None:
    _stdin(process).write(text.encode())
