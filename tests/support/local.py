"""A local stack for tests, in a thread with its own event loop, so that its life depends on no test's.

What is awaited here runs on the stack's loop and is waited for on the caller's.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from services.cli.local import LocalStack, LocalStackSettings

if TYPE_CHECKING:
    import signal
    from collections.abc import Coroutine, Iterator, Mapping, Sequence
    from pathlib import Path

    from services.cli.local import Service
    from services.cli.local.supervisor import Child


class RunningChild:
    """One process of the stack, to be killed, stopped and waited for. Supervision brings back what was killed."""

    def __init__(self, child: Child, loop: asyncio.AbstractEventLoop) -> None:
        self._child = child
        self._loop = loop

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def restarts(self) -> int:
        return self._child.restarts

    @property
    def log(self) -> str:
        """All that it printed, over all its lives."""
        return self._child.spec.log_path.read_text(errors="replace")

    def signal(self, signum: signal.Signals) -> None:
        """SIGSTOP and SIGCONT, say; supervision does not interfere with a stopped process."""
        if self.pid is None:
            raise ProcessLookupError(f"{self._child.spec.name} has no process at the moment")
        os.kill(self.pid, signum)

    async def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        await self._there(self._child.kill())

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        await self._there(self._child.wait_ready(timeout_s))

    async def _there(self, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


class RunningStack:
    """A stack that is ready. `environment` is what clients need; also what tests pass to a command they start."""

    def __init__(self, stack: LocalStack, loop: asyncio.AbstractEventLoop, service_env: Mapping[str, str]) -> None:
        self._stack = stack
        self._loop = loop
        self.environment = {**stack.environment(), **service_env}

    @property
    def gateway_url(self) -> str:
        return self._stack.urls["gateway"]

    @property
    def monitor_url(self) -> str:
        return self._stack.urls["monitor"]

    def child(self, name: str) -> RunningChild:
        return RunningChild(self._stack.child(name), self._loop)


@contextmanager
def local_stack(
    data_dir: Path,
    services: Sequence[Service] = (),
    *,
    service_env: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[RunningStack]:
    """A stack in `data_dir`; `service_env` is added to every service's environment, `settings` are the stack's.

    Raises:
        LocalStackError: it did not start; the message holds the last lines of whoever failed.
    """
    env = dict(service_env or {})
    services = [replace(service, env={**service.env, **env}) for service in services]
    stack = LocalStack(LocalStackSettings(data_dir=data_dir, **settings), services)
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    started: Future[None] = Future()
    ended: Future[None] = Future()

    async def live() -> None:
        async with stack:
            started.set_result(None)
            await stop.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(live())
        except BaseException as err:  # noqa: BLE001 - raised again where it can be seen
            (ended if started.done() else started).set_exception(err)
        else:
            ended.set_result(None)

    thread = threading.Thread(target=run, name="local stack")
    thread.start()
    try:
        started.result()
        yield RunningStack(stack, loop, env)
    finally:
        with suppress(RuntimeError):  # the loop is closed already if the start failed
            loop.call_soon_threadsafe(stop.set)
        thread.join()
    ended.result()
