"""The questions of optimizers, answered one at a time by a child process, below the traffic.

Only questions to this very run of this worker are taken, a few at a time; the rest are answered with why not. Files are
fetched into a directory of their own. The child gets the device between batches, for a handful of runs each time, and
where requests wait it then stays away for `_AWAY` times as long: traffic keeps nine tenths of the device. A run that
keeps the device longer than `_MAX_TURN_S` ends the child, and the measuring. One that ends the child by itself costs
the candidate that it was for; a fresh child goes on with the others.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import aclosing, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec
from aiokafka.errors import KafkaError

from services.worker.engine import environment
from services.worker.measuring.messages import (
    GO,
    INPUTS_FILE,
    MAX_LINE_BYTES,
    MESSAGE,
    Failed,
    Ran,
    Ready,
    Task,
    Took,
    Wants,
    file_of,
)
from shared import logs, measurements
from shared.confine import Limits
from shared.measurement_events import MeasurementRequested, MeasurementTaken

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from aiokafka import AIOKafkaProducer

    from services.worker.measuring.messages import Message
    from services.worker.settings import WorkerSettings
    from shared.artifacts import Artifact, ArtifactStore
    from shared.events import Latency

_CHILD: Final = ("-P", "-m", "services.worker.measuring")
_SOURCES: Final = str(Path(__file__).resolve().parents[3])
_MAX_WAITING: Final = 4
_MAX_TURN_S: Final = 1.0
_AWAY: Final = 9
_LIBRARIES_BYTES: Final = 4 * 1024**3
"""Address space that the child takes before it loads anything, and while it runs."""


class _Ended(Exception):
    """The measuring is over; the message says why."""


class Measuring:
    """One worker's answers. `device` is `Lane.aside`."""

    def __init__(
        self,
        settings: WorkerSettings,
        store: ArtifactStore,
        device: Callable[[], AbstractAsyncContextManager[bool]],
        producer: AIOKafkaProducer,
    ) -> None:
        self._settings = settings
        self._store = store
        self._device = device
        self._producer = producer
        self._asked: asyncio.Queue[MeasurementRequested] = asyncio.Queue()

    def listening(self) -> AbstractAsyncContextManager[None]:
        """Questions are heard while this is entered: before the first heartbeat, which is what brings them."""
        return measurements.followed(self._settings, MeasurementRequested, self._take)

    async def run(self) -> None:
        """Answer questions until cancelled."""
        self._sweep()
        while True:
            asked = await self._asked.get()
            await self._answer(asked, await self._measured(asked))

    def _take(self, asked: MeasurementRequested) -> None:
        if asked.worker != self._settings.owner:
            return
        if self._asked.qsize() >= _MAX_WAITING:
            logs.get().warning("too many measurements asked for", model=asked.model)
            return
        self._asked.put_nowait(asked)

    async def _answer(self, asked: MeasurementRequested, answer: MeasurementTaken) -> None:
        logs.get().info(
            "measured for an optimizer",
            model=asked.model,
            version=asked.version,
            asked_by=asked.asked_by,
            candidates=sorted(answer.latencies),
            problems=answer.problems,
            failed=answer.failed or None,
        )
        try:
            await measurements.publish(self._settings, self._producer, asked.model, answer)
        except KafkaError as err:  # the optimizer waits for so long only, and then goes on without
            logs.get().warning("measurement not sent", error=repr(err))

    async def _measured(self, asked: MeasurementRequested) -> MeasurementTaken:
        """What the children found."""
        found = _Findings()
        failed = ""
        try:
            async with asyncio.timeout(asked.timeout_s):
                with TemporaryDirectory(dir=self._settings.data_dir, prefix=self._prefix) as directory:
                    await self._fetch(asked, Path(directory))
                    while left := [name for name in asked.candidates if not found.has(name)]:
                        await self._child(asked, left, Path(directory), found)
        except TimeoutError:
            failed = f"it was not done after {asked.timeout_s:g} s"
        except _Ended as err:
            failed = str(err)
        except Exception as err:  # noqa: BLE001 - whatever is wrong with a question must not end the worker
            failed = repr(err)[:1000]
        return MeasurementTaken(
            id=asked.id,
            worker=self._settings.owner,
            latencies=found.latencies,
            problems=found.problems,
            failed=failed,
        )

    async def _fetch(self, asked: MeasurementRequested, directory: Path) -> None:
        wanted: dict[str, Artifact] = {file_of(name): each for name, each in asked.candidates.items()}
        wanted |= {file_of(""): asked.reference, INPUTS_FILE: asked.inputs}
        if sum(each.byte_size for each in wanted.values()) > self._settings.memory_budget_bytes:
            raise _Ended("the files are larger than all that this worker may hold")
        for name, artifact in wanted.items():
            with (directory / name).open("xb") as file:
                async for piece in self._store.stream(artifact):
                    await asyncio.to_thread(file.write, piece)

    async def _child(self, asked: MeasurementRequested, left: list[str], directory: Path, found: _Findings) -> None:
        """Have a fresh child measure what is left, for as long as it goes well.

        Raises:
            _Ended: nothing more can be measured.
        """
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *_CHILD,
            cwd=directory,
            env=_environment(directory),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MAX_LINE_BYTES,
            start_new_session=True,
        )
        try:
            began = False
            with suppress(ConnectionError):  # it died: what it did not say tells
                _pipe(child).write(msgspec.json.encode(self._task(asked, left)) + b"\n")
                async with aclosing(_said(child)) as messages:
                    async for message in messages:
                        began = began or isinstance(message, Ready)
                        await self._heard(child, message, found)
            blamed = next((name for name in left if not found.has(name)), None)
            if blamed is not None:
                if not began:
                    raise _Ended("the process that measures died before it could")
                found.problems[blamed] = f"the process that ran it died ({await _how(child)})"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()

    async def _heard(self, child: Process, message: Message, found: _Findings) -> None:
        match message:
            case Took(candidate=name, problem=problem) if problem:
                found.problems[name] = problem
            case Took(candidate=name):
                found.latencies[name] = message.latencies
            case Failed(problem=problem):
                raise _Ended(problem)
            case Wants():
                await self._lend(child)
            case _:
                pass

    async def _lend(self, child: Process) -> None:
        """The device to the child, until it says that it needs it no more.

        Raises:
            _Ended: it kept it for too long.
        """
        async with self._device() as busy:
            began_s = time.monotonic()
            _pipe(child).write(GO)
            try:
                async with asyncio.timeout(_MAX_TURN_S):
                    async with aclosing(_said(child)) as messages:
                        async for message in messages:
                            if isinstance(message, Ran):
                                break
            except TimeoutError:
                raise _Ended(f"a run took longer than {_MAX_TURN_S:g} s: too long beside requests") from None
        if busy:
            await asyncio.sleep(_AWAY * (time.monotonic() - began_s))

    def _task(self, asked: MeasurementRequested, left: list[str]) -> Task:
        settings = self._settings
        cuda = "CUDAExecutionProvider" in environment(settings).providers
        limits = Limits(
            address_space_bytes=None if cuda else settings.memory_budget_bytes + _LIBRARIES_BYTES,
            cpu_s=int(asked.timeout_s * (settings.threads + 1)) + 10,
            file_bytes=0,
        )
        return Task(
            parent_pid=os.getpid(),
            limits=limits,
            threads=settings.threads,
            device=settings.device,
            reference="",
            candidates=tuple(left),
            signature=asked.signature,
            runtime=asked.runtime,
        )

    @property
    def _prefix(self) -> str:
        """`~` is in no instance's name, so none is another's beginning."""
        return f"aiaas-measure-{self._settings.instance}~"

    def _sweep(self) -> None:
        """Make the directory of directories, and remove what this worker left there when it was killed."""
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        for path in self._settings.data_dir.glob(f"{self._prefix}*"):
            rmtree(path, ignore_errors=True)  # what can't be removed is in nobody's way


class _Findings:
    """What became of each candidate."""

    def __init__(self) -> None:
        self.latencies: dict[str, tuple[Latency, ...]] = {}
        self.problems: dict[str, str] = {}

    def has(self, name: str) -> bool:
        return name in self.latencies or name in self.problems


async def _said(child: Process) -> AsyncGenerator[Message]:
    """What the child says, until it ends.

    Raises:
        _Ended: it said what it would not say.
    """
    assert child.stdout is not None  # noqa: S101 - a pipe, for the type checker
    try:
        while line := await child.stdout.readline():
            yield MESSAGE.decode(line)
    except (msgspec.DecodeError, UnicodeError, ValueError) as err:
        raise _Ended(f"the process that measures reported nonsense: {err}") from err


def _pipe(child: Process) -> asyncio.StreamWriter:
    assert child.stdin is not None  # noqa: S101 - a pipe, for the type checker
    return child.stdin


async def _how(child: Process) -> str:
    status = await child.wait()
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _environment(directory: Path) -> dict[str, str]:
    """Nothing of ours: no credentials, no switches."""
    home = str(directory)
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    return kept | {
        "PATH": os.defpath,
        "PYTHONPATH": _SOURCES,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "HOME": home,
        "TMPDIR": home,
    }
