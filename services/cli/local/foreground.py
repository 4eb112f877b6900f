"""A stack held in the foreground, as `aiaas up` does, until it is told to stop.

The first SIGINT, SIGTERM or SIGHUP drains it, also while it still starts; a second one kills what is left at once.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.cli.local.stack import LocalStack

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def hold(stack: LocalStack, on_ready: Callable[[LocalStack], None]) -> None:
    """Start the stack, call `on_ready` once it is, keep it until a signal, and return when it has drained.

    Raises:
        LocalStackError: it could not start.
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("hold runs inside a task")
    loop = asyncio.get_running_loop()
    told: list[signal.Signals] = []

    def stop(signum: signal.Signals) -> None:
        told.append(signum)
        task.cancel()

    for signum in _SIGNALS:
        loop.add_signal_handler(signum, stop, signum)
    try:
        async with stack:
            on_ready(stack)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not told:
            raise
        for _ in told:
            task.uncancel()
    finally:
        for signum in _SIGNALS:
            loop.remove_signal_handler(signum)
