"""How many requests of a model may be in flight in this gateway: learned from how fast answers come.

A fixed number is wrong by orders of magnitude: 256 requests are an eighth of a second of a small network, five seconds
of a language model and twenty minutes of a slow job. By Little's law the wait is what is in flight over the rate of
answers, so the limit is what is answered in a fixed time (`queue_s`), or `PLACES` if that is less; never less than the
live workers can hold in their batches, if filling those takes that time, since they would run dry; never more than
`most`.

While more are refused than answered, refusals take of the CPU that answers are made with. A quick model then has fewer
places by as much as its rate has fallen below its best, so that those let in wait as long as with `PLACES` at its best.

The rate is answers over *busy* time, while anything is in flight, in windows long enough to be told from noise. A
window measured capacity if somebody was refused in it or the workers always had a batch in waiting: its rate replaces
what was known, downwards by half at a time. Any other window only says that capacity is at least that much. So idleness
and light load never shrink the limit, a burst onto an idle model finds all its places, and a model that nobody has
measured begins with them too.

Pure: time is passed in, in seconds of a clock that does not go back. docs/decisions/0005-admission.md has what was
weighed, and what the rule does to simulated queues.
"""

from __future__ import annotations

from typing import Final

PLACES: Final = 256
"""What a model gets that is fast, or of unknown speed."""
LEAST: Final = 16
"""Fewer than this are no queue, however slow the model."""
_WINDOW_S: Final = 0.5
_ENOUGH: Final = 32
"""Answers that make the rate of a short window worth believing."""
_MOST_DECREASE: Final = 0.5
"""Of the rate at a time: one bad moment does not shut the door."""
_LONGEST_WINDOW_S: Final = 10.0
_FORGOTTEN: Final = 0.999
"""What a window leaves of the best rate that was seen, which may have been of another machine's hour."""


class InFlightLimit:
    """The limit of one model: `value`. Tell it of each beginning, end and refusal."""

    def __init__(self, *, most: int, queue_s: float) -> None:
        self._most = most
        self._queue_s = queue_s
        self._held = LEAST
        self.rate = PLACES / queue_s
        """Answers a second that this gateway's requests get at capacity, as far as known."""
        self._best = 0.0
        self._share = 1.0
        """Of `PLACES`."""
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._answered = 0
        self._lowest = 0
        self._refused = 0
        self.in_flight = 0

    @property
    def value(self) -> int:
        """So many may be in flight."""
        quick = self._held < self._best * self._queue_s
        least, places = (LEAST, round(PLACES * self._share)) if quick else (self._held, PLACES)
        return min(self._most, max(least, min(places, round(self.rate * self._queue_s))))

    def workers_hold(self, requests: int) -> None:
        """What live workers can hold: a batch that runs and a batch in waiting, each."""
        self._held = max(LEAST, requests)

    def began(self, now_s: float) -> None:
        """A request was let in."""
        if self.in_flight == 0:
            self._busy_since_s = now_s
        self.in_flight += 1

    def refused(self) -> None:
        """A request was not let in because the limit was reached."""
        self._refused += 1

    def ended(self, now_s: float, *, answered: bool) -> None:
        """A request that was let in has left; `answered` by a worker, or for another reason."""
        self.in_flight -= 1
        self._answered += answered
        self._lowest = min(self._lowest, self.in_flight)
        busy_s = self._busy_s + now_s - self._busy_since_s
        if busy_s >= _WINDOW_S and (self._answered >= _ENOUGH or busy_s >= _LONGEST_WINDOW_S):
            self._learn(self._answered / busy_s)
            self._busy_s, self._busy_since_s = 0.0, now_s
            self._answered, self._lowest, self._refused = 0, self.in_flight, 0
        elif self.in_flight == 0:
            self._busy_s = busy_s

    def _learn(self, rate: float) -> None:
        if rate > self.rate:
            self.rate = rate
        elif self._refused or self._lowest >= self._held // 2:
            self.rate = max(rate, self.rate * _MOST_DECREASE)
        self._best = max(rate, self._best * _FORGOTTEN)
        self._share = min(1.0, self.rate / self._best) if self._refused > self._answered > 0 else 1.0
