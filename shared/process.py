"""The life of a service process: uvloop, signals, and a stop that drains.

SIGTERM and SIGINT set the stop event; the service leaves its `async with` blocks in order, each with its own bound.
A second signal, or a service that does not stop within its bound, ends the process at once: supervisors restart it,
and the log makes that safe.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from typing import TYPE_CHECKING

import uvloop

from shared import ending, logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_DRAIN_S = 30.0
_COLLECT_AFTER_OBJECTS = 20_000


def run(service: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run a service until it is told to stop. An error that ends it is logged and becomes exit code 1."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, _told, signum, stop)
        spare_the_collector()
        await service(stop)

    with ending.of_the_process():
        try:
            uvloop.run(main())
        except Exception as err:
            logs.get().exception("stopped by an error", error="; ".join(map(repr, _causes(err))))
            raise SystemExit(1) from err


def give_way(niceness: int) -> None:
    """Let processes that answer go first where all want the CPU: for those that watch and keep.

    Niceness is what they get of a CPU that is short; and a process of the class "batch" that wakes up interrupts none.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def spare_the_collector() -> None:
    """Let the cyclic garbage collector look less often, and never at what the imports made.

    A service that answers requests makes thousands of objects a second, nearly all of which reference counts free;
    going through them took a fifteenth of a gateway's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS, 20, 20)


def _causes(err: BaseException) -> list[BaseException]:
    """The errors themselves, out of the groups that task groups put them in."""
    if isinstance(err, BaseExceptionGroup):
        return [cause for each in err.exceptions for cause in _causes(each)]
    return [err]


def _told(signum: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(128 + signum)
    logs.get().info("stopping", signal=signal.Signals(signum).name)
    stop.set()
    asyncio.get_running_loop().call_later(_DRAIN_S, _overdue)


def _overdue() -> None:
    logs.get().error("did not drain in time", bound_s=_DRAIN_S)
    os._exit(1)
