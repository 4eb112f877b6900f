"""What a running stack leaves for others to read: `run/stack.json`, and the lock that keeps a second stack out.

The file is replaced as a whole at every change, so a reader sees one moment. A stack that crashed leaves its file
behind; whether it still runs is asked of the operating system, by process id and start time. The file may hold
passwords (URLs of given servers): it is for its owner's eyes only.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from services.cli.local.errors import ChildFailedError, StackRunningError

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL_S = 0.1


class ChildRecord(BaseModel):
    """One child at one moment."""

    model_config = ConfigDict(frozen=True)

    state: str
    pid: int | None
    restarts: int
    log: Path


class RunningStack(BaseModel):
    """A stack that runs in another process (or in this one), as its last record says."""

    model_config = ConfigDict(frozen=True)

    pid: int
    pid_started: float
    """Start time of the process in seconds since the epoch: tells it from a later one with the same id."""
    root: Path
    ready: bool
    kafka: str
    environment: dict[str, str]
    urls: dict[str, str]
    children: dict[str, ChildRecord]

    @classmethod
    def find(cls, data_dir: Path) -> Self | None:
        """The stack that owns this data directory, or None if none runs."""
        try:
            record = cls.model_validate_json(_file(data_dir).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return record if record.is_alive() else None

    def is_alive(self) -> bool:
        """Whether its process still runs."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return bool(process.create_time() == self.pid_started and process.status() != psutil.STATUS_ZOMBIE)
        return False

    async def wait_ready(self, child: str, *, timeout_s: float = 60.0, after_pid: int | None = None) -> ChildRecord:
        """Wait until a child is ready, as another process than `after_pid` if that is given (the one just killed).

        Raises:
            ChildFailedError: it is not ready in time, or the stack has gone.
        """
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline_s:
            now = self.find(self.root)
            if now is None:
                raise ChildFailedError(f"The stack in {self.root} no longer runs.")
            record = now.children[child]
            if record.state == "ready" and record.pid != after_pid:
                return record
            await asyncio.sleep(_POLL_S)
        raise ChildFailedError(f"{child} was not ready after {timeout_s:g} s; its log is {self.children[child].log}.")


async def stop_stack(data_dir: Path, timeout_s: float = 60.0) -> bool:
    """Tell the stack of this data directory to drain and wait until it has gone; False if none ran.

    After the timeout it is killed, and its children with it (that is the leash's and the warden's part).
    """
    stack = RunningStack.find(data_dir)
    if stack is None:
        return False
    for signum, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.kill(stack.pid, signum)
        deadline_s = asyncio.get_running_loop().time() + patience_s
        while stack.is_alive() and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110 - another process
            await asyncio.sleep(_POLL_S)
    return True


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Own the data directory: one stack each.

    Raises:
        StackRunningError: another stack owns it.
    """
    _file(root).parent.mkdir(parents=True, exist_ok=True)
    with (root / "run" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            other = RunningStack.find(root)
            raise StackRunningError(
                f"A stack already runs on {root}{f' (process {other.pid})' if other else ''}: `aiaas status` shows it, "
                "`aiaas down` stops it, and another AIAAS_DATA_DIR is another stack."
            ) from err
        try:
            yield
        finally:
            _file(root).unlink(missing_ok=True)


def write(root: Path, facts: dict[str, Any]) -> None:
    """Replace the record; who we are is added."""
    me = {"pid": os.getpid(), "pid_started": psutil.Process().create_time(), "root": str(root)}
    unfinished = _file(root).with_suffix(".part")
    unfinished.touch(mode=0o600)
    unfinished.write_bytes(orjson.dumps({**me, **facts}, option=orjson.OPT_INDENT_2))
    unfinished.replace(_file(root))


def _file(root: Path) -> Path:
    return root / "run" / "stack.json"
