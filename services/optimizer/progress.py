"""How far a job is: the share of its plan that is behind it, and how long the rest may take.

All steps count alike, and the rest is taken to go as fast as what was done here: a guess, and called one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

_LEAST_SHARE = 0.02
"""Less than that done here says nothing about the rest."""
_AGAIN_S = 0.5
"""How soon the same thing is told again, further on."""


@dataclass(frozen=True)
class Progressed:
    """Where a job is."""

    step: str
    fraction: float
    remaining_s: float | None = None
    points: Mapping[str, tuple[int, float]] = field(default_factory=dict)


class Meter:
    """Counts the steps of a plan, and tells."""

    def __init__(
        self,
        steps: Sequence[str],
        on_progress: Callable[[Progressed], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = steps
        self._on_progress = on_progress
        self._clock = clock
        self._done: set[str] = set()
        self._recalled: set[str] = set()
        self._began_s = clock()
        self._last: tuple[str, float] = ("", 0.0)

    def recalled(self, step: str) -> None:
        """It is done, and was not done here."""
        if step in self._steps:  # and not a part of one
            self._done.add(step)
            self._recalled.add(step)

    async def done(self, step: str) -> None:
        """It is done."""
        if step not in self._steps:
            return
        self._done.add(step)
        await self.say(step, 0.0, "done")

    async def say(
        self, step: str, within: float, what: str = "", points: Mapping[str, tuple[int, float]] | None = None
    ) -> None:
        """It is in a step, and so far within it."""
        total = max(1, len(self._steps))
        own = 0.0 if step in self._done else within
        fraction = min(1.0, (len(self._done) + own) / total)
        label = f"{step}: {what}" if what else step
        now_s = self._clock()
        if label == self._last[0] and now_s < self._last[1] + _AGAIN_S:
            return
        self._last = (label, now_s)
        await self._on_progress(Progressed(label, fraction, self._remaining_s(fraction), dict(points or {})))

    def _remaining_s(self, fraction: float) -> float | None:
        made = fraction - len(self._recalled) / max(1, len(self._steps))
        if made < _LEAST_SHARE:
            return None
        return (self._clock() - self._began_s) * (1 - fraction) / made
