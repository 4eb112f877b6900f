"""One supervised child: started, probed until it is ready, restarted when it dies, stopped when it is time.

    starting ──probe passes──> ready ──dies──> waiting ──back-off over──> starting …
        └──dies again and again before it ever was ready──> failed         any ──stop()──> stopped

A child that never was ready gets a few tries, then fails with its last lines: that is a wrong configuration. A child
that was ready once is restarted for ever, with exponential back-off up to a bound; having been ready for a while wipes
the slate. Only death counts: a child that hangs or is stopped by SIGSTOP is left alone.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from services.cli.local import child_logs
from services.cli.local.errors import ChildFailedError
from services.cli.local.events import Phase, StackEvent
from services.cli.local.processes import describe_exit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from services.cli.local.events import OnEvent
    from services.cli.local.probes import Probe
    from services.cli.local.processes import Processes

State = Literal["starting", "ready", "waiting", "failed", "stopped"]
_PROBE_EVERY_S = 0.1
_TRIES_BEFORE_READY = 3
_DEADLY = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGHUP})


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next start, by the number of deaths in a row."""

    first_s: float = 0.2
    limit_s: float = 10.0
    reset_s: float = 30.0

    def delay_s(self, deaths_in_a_row: int) -> float:
        """The first death waits `first_s`, each further one twice as long, up to `limit_s`."""
        return min(self.limit_s, self.first_s * 2.0 ** min(deaths_in_a_row - 1, 30))

    def deaths_in_a_row(self, before: int, ready_s: float) -> int:
        """Counts a death after `ready_s` of readiness: long enough, and it is the first again."""
        return 1 if ready_s >= self.reset_s else before + 1


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run, how to see that it is ready, and how patient to be."""

    name: str
    argv: tuple[str, ...]
    probe: Probe
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 90.0
    stop_timeout_s: float = 15.0
    backoff: Backoff = field(default_factory=Backoff)


class Child:
    """A running `ChildSpec`. `pid` and `restarts` change as it dies and comes back."""

    def __init__(self, spec: ChildSpec, processes: Processes, on_event: OnEvent) -> None:
        self.spec = spec
        self.state: State = "starting"
        self.restarts = 0
        self._processes = processes
        self._on_event = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._settled = asyncio.Event()  # ready, failed or stopped: nothing to wait for
        self._life: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._why_not_ready = "it was not asked yet"
        self._failure: ChildFailedError | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None while there is no process."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Begin to supervise; `wait_ready` tells when it is up."""
        self._life = asyncio.create_task(self._live(), name=f"supervise {self.spec.name}")
        self._life.add_done_callback(self._life_over)

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Return once the child is ready.

        Raises:
            ChildFailedError: it gave up, was stopped, or was not ready in time; with its last lines.
        """
        limit_s = self.spec.ready_timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._settled.wait()
        except TimeoutError as err:
            raise self._failed(f"was not ready after {limit_s:g} s: {self._why_not_ready}") from err
        if self.state != "ready":
            raise self._failure or self._failed("was stopped")

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal to the child's process; a deadly one makes it not ready from now on.

        Raises:
            ProcessLookupError: there is no process at the moment.
        """
        if self._process is None:
            raise ProcessLookupError(f"{self.spec.name} has no process at the moment")
        self._process.send_signal(signum)
        if signum in _DEADLY:
            self._settled.clear()

    async def kill(self) -> None:
        """Kill it with SIGKILL and return when it is dead; supervision brings it back."""
        process = self._process
        self.send_signal(signal.SIGKILL)
        if process is not None:
            await process.wait()

    async def stop(self) -> None:
        """SIGTERM, a bounded wait, SIGKILL; it is not started again. Also ends a child that waits for its restart."""
        self._stopping.set()
        if self._life is None:
            return
        if self._process is not None:
            self._terminate()
        done, _ = await asyncio.wait({self._life}, timeout=self.spec.stop_timeout_s)
        if not done:
            self._tell("warning", f"did not stop within {self.spec.stop_timeout_s:g} s and is killed")
        self._life.cancel()
        await asyncio.wait({self._life})

    def _terminate(self) -> None:
        self._tell("stopping", "stopping")
        self.send_signal(signal.SIGTERM)
        self.send_signal(signal.SIGCONT)  # a stopped process would not hear the first

    async def _live(self) -> None:
        deaths_in_a_row, ever_ready = 0, False
        while True:
            ready_s, exit_code = await self._run_once()
            if self._stopping.is_set():
                return
            ever_ready = ever_ready or ready_s > 0
            deaths_in_a_row = self.spec.backoff.deaths_in_a_row(deaths_in_a_row, ready_s)
            how = describe_exit(exit_code)
            if not ever_ready and deaths_in_a_row >= _TRIES_BEFORE_READY:
                raise self._failed(f"{how} {deaths_in_a_row} times without ever becoming ready")
            delay_s = self.spec.backoff.delay_s(deaths_in_a_row)
            self._change("waiting", "died", f"{how}; starting it again in {delay_s:g} s")
            if await self._told_to_stop_within(delay_s):
                return
            self.restarts += 1

    async def _run_once(self) -> tuple[float, int]:
        """One process from start to death: how long it was ready in seconds (0 if never), and its exit code."""
        started_s = time.monotonic()
        ready_at_s: float | None = None
        async with self._processes.started(self.spec.argv, self.spec.log_path, self.spec.env) as process:
            self._process = process
            self._change("starting", "starting", "starting")
            if self._stopping.is_set():  # told so while the process was being made
                self._terminate()
            dead = asyncio.create_task(process.wait())
            passed = asyncio.create_task(self._probe_until_ready())
            try:
                await asyncio.wait({dead, passed}, return_when=asyncio.FIRST_COMPLETED)
                if passed.done() and not dead.done():
                    passed.result()
                    ready_at_s = time.monotonic()
                    self._change("ready", "ready", f"ready in {ready_at_s - started_s:.1f} s")
                exit_code = await dead
            finally:
                self._process = None
                self._settled.clear()
                dead.cancel()
                passed.cancel()
        return (time.monotonic() - ready_at_s if ready_at_s is not None else 0.0), exit_code

    async def _probe_until_ready(self) -> None:
        while (why_not := await self.spec.probe()) is not None:
            self._why_not_ready = why_not
            await asyncio.sleep(_PROBE_EVERY_S)

    async def _told_to_stop_within(self, delay_s: float) -> bool:
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _life_over(self, life: asyncio.Task[None]) -> None:
        err = None if life.cancelled() else life.exception()
        if err is None:
            self._change("stopped", "stopped", "stopped")
        else:
            self._failure = err if isinstance(err, ChildFailedError) else self._failed(f"is not supervised: {err!r}")
            self._change("failed", "failed", str(self._failure))
        self._settled.set()

    def _change(self, state: State, phase: Phase, message: str) -> None:
        self.state = state
        if state == "ready":
            self._settled.set()
        self._tell(phase, message)

    def _tell(self, phase: Phase, message: str) -> None:
        self._on_event(StackEvent(self.spec.name, phase, message))

    def _failed(self, what: str) -> ChildFailedError:
        log_path = self.spec.log_path
        return ChildFailedError(f"{self.spec.name} {what}; the last lines of {log_path}:\n{child_logs.tail(log_path)}")
