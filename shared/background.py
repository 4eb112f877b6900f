"""Background work that can't die silently, and waits that can't swallow a cancel."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine


@asynccontextmanager
async def beside(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `jobs` until the body ends. One that raises cancels the body and is raised in an ExceptionGroup."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
        yield
        for task in tasks:
            task.cancel()


async def set_within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait for an event, but not longer than `timeout_s`; whether it came.

    Not `asyncio.wait_for`: up to Python 3.11 that returns, and the task lives on, if the task is cancelled in the very
    moment in which the event is set.
    """
    if timeout_s is None:
        return await event.wait()
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
