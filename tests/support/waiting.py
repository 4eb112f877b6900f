"""Waiting for what must become true: polled with a deadline, since nobody tells a test."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.05


async def eventually(look: Callable[[], Any], *, within_s: float = 10.0, what: str = "") -> Any:
    """The first truthy value of `look()`, which may be async. An AssertionError counts as not yet.

    Raises:
        AssertionError: it did not come within the time; with the last value or failure seen.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        last: Any
        try:
            last = look()
            if inspect.isawaitable(last):
                last = await last
        except AssertionError as err:
            last = err
        else:
            if last:
                return last
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what or 'it'} did not happen within {within_s:g} s; last seen: {last!r}")
        await asyncio.sleep(POLL_S)
