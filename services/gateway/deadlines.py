"""Who is to be called when, for thousands who hardly ever are: one timer for all, a few milliseconds late at most.

Nearly every request is answered long before its deadline, and a timer of the event loop costs more to set and to cancel
than the rest of the wait. So deadlines are collected in slots of `_SLOT_S`; only the next slot that has any is timed.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_SLOT_S: Final = 0.004
_MOST_EMPTY: Final = 512
"""Numbers of slots that are empty again, beyond those of slots that are not, before they are forgotten."""


class Deadlines:
    """Of one event loop. Times are by its clock, in seconds."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Hashable, Callable[[], object]]] = {}
        self._order: list[int] = []
        """A heap of the slots' numbers; of slots that are empty again, too, and of some twice."""
        self._called: dict[tuple[int, Hashable], Callable[[], object]] = {}
        """Those that are due, until their turn of the event loop."""
        self._timer: asyncio.TimerHandle | None = None
        self._timed = 0

    def add(self, time_s: float, who: Hashable, callback: Callable[[], object]) -> int:
        """Call back when `time_s` has passed, unless `discard` is called with the slot that this returns."""
        number = math.ceil(time_s / _SLOT_S)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            if len(self._order) > 2 * len(self._slots) + _MOST_EMPTY:
                self._order = sorted(self._slots)
            else:
                heapq.heappush(self._order, number)
            self._time()
        slot[who] = callback
        return number

    def discard(self, slot: int, who: Hashable) -> None:
        """Don't, if it has not been done."""
        waiting = self._slots.get(slot)
        if waiting is not None:
            waiting.pop(who, None)
            if not waiting:
                del self._slots[slot]
        if self._called:
            self._called.pop((slot, who), None)

    def _time(self) -> None:
        """Time the first slot."""
        first = self._order[0]
        if self._timer is not None and first >= self._timed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timed = first
        self._timer = asyncio.get_running_loop().call_at(first * _SLOT_S, self._due)

    def _due(self) -> None:
        """Call whoever is due, each by itself: one may discard another, and if it fails, the others are called."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._order and (self._order[0] * _SLOT_S <= now_s or self._order[0] not in self._slots):
            number = heapq.heappop(self._order)
            for who, callback in self._slots.pop(number, {}).items():
                self._called[number, who] = callback
                loop.call_soon(self._call, (number, who))
        if self._order:
            self._time()

    def _call(self, who: tuple[int, Hashable]) -> None:
        callback = self._called.pop(who, None)
        if callback is not None:
            callback()
