"""Waits that can't swallow a cancel."""

from __future__ import annotations

import asyncio

import pytest

from shared.background import set_within


async def test_an_event_is_waited_for_but_not_longer():
    event = asyncio.Event()
    assert not await set_within(event, 0.01)
    asyncio.get_running_loop().call_soon(event.set)
    assert await set_within(event, None)
    assert await set_within(event, 1.0)


async def _for_ever(event, timeout_s):
    while True:
        await set_within(event, timeout_s)
        event.clear()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("timeout_s", [None, 10.0])
async def test_a_cancel_some_turns_of_the_loop_after_the_event_still_cancels(turns, timeout_s):
    event = asyncio.Event()
    waiting = asyncio.create_task(_for_ever(event, timeout_s))
    await asyncio.sleep(0.01)
    event.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    done, _ = await asyncio.wait({waiting}, timeout=30)
    assert done
