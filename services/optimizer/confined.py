"""Running the sandbox: a child process with as little as possible, watched from here.

The child gets its own session, a private working directory, an environment of its own, and, where the system allows
it, no network (`unshare --net` in a user namespace; `open_sandbox` tries it and says what it found). It limits itself
before it opens the file and dies with this process (`shared.confine`). Here are the wall clock,
the bounds on what it says, and the end of its whole process group whatever happens.

`Ending` says how it ended, as a code of `rejections` if that condemns the model. What is nobody's fault but the
installation's is `SandboxUnusable`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from services.optimizer.messages import MAX_LINE_BYTES, MAX_LINES, MESSAGE, UNUSABLE_EXIT, Found, Job, Probed
from shared import logs
from shared.confine import Limits

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Awaitable, Callable

    from services.optimizer.messages import Message
    from services.optimizer.settings import OptimizerSettings

TIMED_OUT: Final = "vet_timeout"
_NO_NETWORK = ("unshare", "--user", "--map-current-user", "--net", "--")
_CHILD = ("-P", "-m", "services.optimizer.sandbox")
"""-P: the working directory, where the file lies, is no place to import from."""
_PROBE_TIMEOUT_S = 60.0
_TCP_LANDLOCK = 4
"""The first version of Landlock that knows of TCP."""
_STDERR_BYTES = 16 * 1024
_SOURCES = str(Path(__file__).resolve().parents[2])


class SandboxUnusable(RuntimeError):
    """The child can't work on this machine, whatever the file."""


@dataclass(frozen=True)
class Ending:
    """How the child ended: `code` is None if it said all it had to say."""

    code: str | None = None
    found: str = ""


class _Broken(Exception):
    """The child said something that it would not say."""


class Sandbox:
    """Runs children. Build it with `open_sandbox`."""

    def __init__(self, settings: OptimizerSettings, prefix: tuple[str, ...] = ()) -> None:
        self._settings = settings
        self._prefix = prefix

    def job(self, budget_s: float, **what: Any) -> Job:
        """The description of a job of so many seconds under the configured limits."""
        return self._job("steps", budget_s, **what)

    def export_job(self, budget_s: float, **what: Any) -> Job:
        """The description of an export, as above."""
        return self._job("export", budget_s, **what)

    def _job(self, kind: Literal["probe", "steps", "export"], budget_s: float, **what: Any) -> Job:
        settings = self._settings
        limits = Limits(
            address_space_bytes=settings.sandbox_memory_bytes,
            cpu_s=int(budget_s * (settings.threads + 1)) + 10,
            file_bytes=2 * settings.max_model_bytes,
        )
        return Job(
            kind=kind,
            parent_pid=os.getpid(),
            limits=limits,
            threads=settings.threads,
            batch_cap=settings.batch_cap,
            max_batch_run_s=settings.max_batch_run_s,
            run_timeout_s=settings.run_timeout_s,
            search_budget_s=settings.job_timeout_s / 4,
            **what,
        )

    async def probe(self) -> Probed:
        """What a child is and can reach.

        Raises:
            SandboxUnusable: it did not say.
        """
        answers: list[Message] = []

        async def keep(message: Message) -> None:
            answers.append(message)

        with TemporaryDirectory(dir=self._settings.jobs_dir, prefix="aiaas-probe-") as directory:
            job = self._job("probe", _PROBE_TIMEOUT_S)
            ending = await self.run(job, Path(directory), keep, lambda: _PROBE_TIMEOUT_S)
        match answers:
            case [Probed() as probed] if ending.code is None:
                return probed
            case _:
                raise SandboxUnusable(ending.found or "the child did not answer the probe")

    async def run(
        self,
        job: Job,
        directory: Path,
        on_message: Callable[[Message], Awaitable[None]],
        allowed_s: Callable[[], float],
    ) -> Ending:
        """Do a job in `directory`, handing on what the child reports; the child is gone when this returns or raises.

        `allowed_s` says how long the next step may take, and is asked at the start and after each that is done.

        Raises:
            SandboxUnusable: the child could not be started, or said that it can't work here.
        """
        command = (*self._prefix, sys.executable, *_CHILD)
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                cwd=directory,
                env=_environment(directory, job.threads),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
                start_new_session=True,
            )
        except OSError as err:
            raise SandboxUnusable(f"can't start {command[0]}: {err}") from err
        complaints = asyncio.create_task(_tail(child), name="sandbox stderr")
        try:
            return await _attend(child, job, on_message, allowed_s, complaints)
        finally:
            complaints.cancel()
            with suppress(ProcessLookupError):  # it and all its group ended by themselves
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()


async def open_sandbox(settings: OptimizerSettings) -> tuple[Sandbox, Probed]:
    """A sandbox without network if the system allows that, else one with, and what it is; a log line says which.

    Raises:
        SandboxUnusable: no child works here; the message says what is missing.
    """
    sandbox, problem = Sandbox(settings, _NO_NETWORK), None
    try:
        probed = await sandbox.probe()
    except SandboxUnusable as err:
        sandbox, problem = Sandbox(settings), str(err)
        probed = await sandbox.probe()
    isolated = set(probed.networks) <= {"lo"}
    log = logs.get().info if isolated and probed.landlock else logs.get().warning
    log(
        "sandbox",
        network="none" if isolated else "no TCP" if probed.landlock >= _TCP_LANDLOCK else "all",
        files="its own" if probed.landlock else "all that its user may read",
        problem=problem,
        onnxruntime=probed.onnxruntime,
        isa=probed.isa,
    )
    return sandbox, probed


async def _attend(
    child: Process,
    job: Job,
    on_message: Callable[[Message], Awaitable[None]],
    allowed_s: Callable[[], float],
    complaints: asyncio.Task[str],
) -> Ending:
    """Give the job, pass on the answers, and say how it ended."""
    may_take_s = allowed_s()

    async def attended(message: Message) -> None:
        nonlocal may_take_s
        await on_message(message)
        if isinstance(message, Found):
            may_take_s = allowed_s()
            timeout.reschedule(asyncio.get_running_loop().time() + may_take_s)

    try:
        async with asyncio.timeout(may_take_s) as timeout:
            await _converse(child, job, attended)
            status = await child.wait()
            said = await complaints
    except TimeoutError:
        return Ending(TIMED_OUT, f"Examining the model took longer than {may_take_s:g} s")
    except _Broken as err:
        return Ending("vet_crashed", str(err))
    if status == 0:
        return Ending()
    if status == UNUSABLE_EXIT:
        raise SandboxUnusable(said.strip() or "the child can't work here")
    return _crash(status, said)


def _crash(status: int, said: str) -> Ending:
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")[:300]
    if "bad_alloc" in said or "MemoryError" in said:
        return Ending("out_of_memory", f"Examining the model took more memory than it may: {last}")
    if status == -signal.SIGXCPU:
        return Ending(TIMED_OUT, "Examining the model took more CPU time than it may")
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return Ending("vet_crashed", f"The process that examined the model ended with {how}: {last}".rstrip(": "))


async def _converse(child: Process, job: Job, on_message: Callable[[Message], Awaitable[None]]) -> None:
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - both are pipes, for the checker
    with suppress(ConnectionError):  # it died before it read: its exit status says more
        child.stdin.write(msgspec.json.encode(job))
        await child.stdin.drain()
    child.stdin.close()
    for _ in range(MAX_LINES):
        try:
            line = await child.stdout.readline()
            if not line:
                return
            message = MESSAGE.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as err:
            raise _Broken(f"The process that examined the model reported nonsense: {err}") from err
        except ValueError as err:  # the stream's limit
            raise _Broken("The process that examined the model reported too long a line") from err
        await on_message(message)
    raise _Broken(f"The process that examined the model reported more than {MAX_LINES} lines")


async def _tail(child: Process) -> str:
    """The last of what the child wrote to stderr; all of it is read, so that it never waits for us."""
    assert child.stderr is not None  # noqa: S101 - a pipe, for the type checker
    last = b""
    while chunk := await child.stderr.read(_STDERR_BYTES):
        last = (last + chunk)[-_STDERR_BYTES:]
    return last.decode(errors="replace")


def _environment(directory: Path, threads: int) -> dict[str, str]:
    """Nothing of ours: no credentials, no proxies, no switches of libraries."""
    return {
        "PATH": os.defpath,
        "PYTHONPATH": _SOURCES,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "HOME": str(directory),
        "USER": "sandbox",  # or libraries look it up in /etc/passwd, which is not theirs to read
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "KERAS_BACKEND": "tensorflow",
        "TMPDIR": str(directory),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MALLOC_ARENA_MAX": "2",  # each arena reserves 64 MiB of the address space that is limited
    }
