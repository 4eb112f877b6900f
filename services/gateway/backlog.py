"""How long a request of a model would wait, whoever produced what is before it: from the workers' heartbeats.

What is in flight here says nothing of what other gateways and upstream systems have put into the log. Workers say it:
how much they have not taken, how much they hold, and how many they have answered since they started. Two heartbeats
far enough apart give a rate; a backlog over a rate is a wait.

Pure: time is passed in. What it does not know it does not guess: without a live worker, or before the first rate, the
wait is 0, since the log is a queue and a worker may come. Nor is a short queue called a backlog, however slow the
model: one slow job before a fast one would make nonsense of every estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.gateway.limits import LEAST, PLACES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shared.heartbeat_events import Heartbeat
    from shared.registry import Registry

_WINDOW_S: Final = 1.5
_ENOUGH: Final = 32
"""Answers that make the rate of a short window worth believing."""
_LONGEST_WINDOW_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One model's backlog over all workers, as of a time, and the rate at which it is answered, if that is known."""

    requests: int
    rate: float | None
    at_s: float


class Backlog:
    """What waits for each model. Tell it of the live workers' heartbeats now and then."""

    def __init__(self) -> None:
        self._speeds: dict[tuple[str, str, str], _Speed] = {}
        self._waiting: dict[str, _Waiting] = {}

    def heard(self, beats: Iterable[tuple[float, Heartbeat]]) -> None:
        """Take in the last heartbeat of each live worker, and when it came; whoever is missing is gone."""
        speeds: dict[tuple[str, str, str], _Speed] = {}
        by_model: dict[str, list[tuple[float, int, _Speed]]] = {}
        for at_s, beat in beats:
            for model in beat.lag.keys() | beat.queued.keys() if beat.service == "worker" else ():
                owner = (beat.instance, beat.incarnation, model)
                waiting = beat.lag.get(model, 0) + beat.queued.get(model, 0)
                speed = speeds[owner] = self._speeds.get(owner) or _Speed()
                speed.counted(at_s, beat.answered.get(model, 0), busy=waiting > 0)
                by_model.setdefault(model, []).append((at_s, waiting, speed))
        self._speeds = speeds
        self._waiting = {model: _together(told) for model, told in by_model.items()}

    def wait_s(self, model: str, now_s: float) -> float:
        """How long a request that came now would wait for its turn, as far as anyone can tell."""
        waiting = self._waiting.get(model)
        if waiting is None or waiting.rate is None:
            return 0.0
        left = waiting.requests - waiting.rate * (now_s - waiting.at_s)
        if left < LEAST:
            return 0.0
        return left / waiting.rate if waiting.rate > 0 else math.inf


class _Speed:
    """How fast one worker answers requests of one model; `rate` None until there is something to tell it by."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._since: tuple[float, int] | None = None
        self._busy = True

    def counted(self, at_s: float, answered: int, *, busy: bool) -> None:
        """So many were answered by then; `busy` if some were left."""
        self._busy = self._busy and busy
        if self._since is None:
            self._since = at_s, answered
            return
        took_s, more = at_s - self._since[0], answered - self._since[1]
        if took_s >= _WINDOW_S and (more >= _ENOUGH or took_s >= _LONGEST_WINDOW_S):
            if self._busy or more / took_s > (self.rate or 0.0):  # else it was the callers who were slow
                self.rate = more / took_s
            self._since, self._busy = (at_s, answered), busy


def _together(told: list[tuple[float, int, _Speed]]) -> _Waiting:
    """All workers of a model; one that just came is taken to be like the others."""
    rates = [speed.rate for _, _, speed in told if speed.rate is not None]
    rate = sum(rates) * len(told) / len(rates) if rates else None
    return _Waiting(sum(waiting for _, waiting, _ in told), rate, max(at_s for at_s, _, _ in told))


def places(registry: Registry, beats: Iterable[tuple[float, Heartbeat]]) -> Mapping[str, int]:
    """By model: how many requests keep the live workers that hold it busy: a batch that runs and one in waiting.

    Two batches of a hundred and more rows are more than that takes, and a long wait.
    """
    held: dict[str, int] = {}
    for _, beat in beats:
        caps: dict[str, int] = {}
        for loaded in beat.loaded:
            model = registry.models.get(loaded.model)
            version = model.versions.get(loaded.version) if model else None
            variant = version.variants.get(loaded.variant) if version else None
            caps[loaded.model] = max(caps.get(loaded.model, 0), variant.row_cap if variant else 1)
        for name, cap in caps.items():
            held[name] = held.get(name, 0) + min(2 * cap, PLACES)
    return held
