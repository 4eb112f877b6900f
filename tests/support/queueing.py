"""A gateway and its workers as a queue that is simulated: what an admission rule does to waits, without the waiting.

Workers take what queued up while they ran, up to a cap, and need `fixed_s + each_s · n` for it: natural batching.
Requests arrive at given times (`poisson`), or from callers that each have one at a time.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field


class Fixed:
    """The rule that admission had before: a number."""

    def __init__(self, value):
        self.value = value

    def began(self, now_s):
        pass

    def refused(self):
        pass

    def ended(self, now_s, *, answered):
        pass


@dataclass(frozen=True)
class Served:
    """How fast a model is answered."""

    name: str
    fixed_s: float
    each_s: float
    cap: int = 32
    workers: int = 1

    @property
    def capacity(self):
        """Requests a second, at full batches."""
        return self.workers * self.cap / (self.fixed_s + self.each_s * self.cap)

    @property
    def places(self):
        return 2 * self.cap * self.workers


@dataclass
class Run:
    """What came of it: latencies in order of arrival as (arrived_s, latency_s), and when others were refused."""

    answered: list = field(default_factory=list)
    refused: list = field(default_factory=list)
    most_in_flight: int = 0

    def p99(self, since_s=0.0):
        return percentile([latency for arrived, latency in self.answered if arrived >= since_s], 0.99)

    def rate(self, since_s, until_s):
        return sum(since_s <= arrived + latency < until_s for arrived, latency in self.answered) / (until_s - since_s)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def poisson(rate, since_s, until_s, seed=0):
    """Times of arrival."""
    chance, now_s = random.Random(seed), since_s
    while (now_s := now_s + chance.expovariate(rate)) < until_s:
        yield now_s


def simulate(served, limit, arrivals):
    """Let `arrivals` (times, ascending) at the queue behind `limit`; whoever is refused does not come back."""
    queue, arriving = _Queue(served, limit), iter(arrivals)
    upcoming = next(arriving, None)
    while upcoming is not None or queue.ends:
        if upcoming is not None and (not queue.ends or upcoming < queue.ends[0][0]):
            queue.ask(upcoming)
            now_s, upcoming = upcoming, next(arriving, None)
        else:
            now_s = queue.ends[0][0]
            queue.answer()
        queue.start(now_s)
    return queue.told()


def simulate_callers(served, limit, callers, until_s):
    """`callers` that each ask again at once when they are answered, and a second after they were refused."""
    queue = _Queue(served, limit)
    asking = [0.0] * callers
    while asking or queue.ends:
        now_s = min(asking[:1] + [end[0] for end in queue.ends[:1]])
        while queue.ends and queue.ends[0][0] == now_s:
            asking += [now_s] * queue.answer()
        again = [now_s + 1.0 for asked in asking if asked == now_s and now_s < until_s and not queue.ask(now_s)]
        asking = sorted([asked for asked in asking if asked > now_s] + again)
        queue.start(now_s)
    return queue.told()


class _Queue:
    """What is in flight: requests that wait, and batches that run and when they end."""

    def __init__(self, served, limit):
        self.ends = []
        self._served, self._limit = served, limit
        self._waiting, self._idle, self._order = deque(), served.workers, 0
        self._run = Run()
        self._in_flight = 0

    def ask(self, now_s):
        """Whether a request is let in."""
        if self._in_flight >= self._limit.value:
            self._limit.refused()
            self._run.refused.append(now_s)
            return False
        self._limit.began(now_s)
        self._in_flight += 1
        self._run.most_in_flight = max(self._run.most_in_flight, self._in_flight)
        self._waiting.append(now_s)
        return True

    def start(self, now_s):
        """Idle workers take what there is."""
        while self._idle and self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._served.cap, len(self._waiting)))]
            self._order, self._idle = self._order + 1, self._idle - 1
            took_s = self._served.fixed_s + self._served.each_s * len(batch)
            heapq.heappush(self.ends, (now_s + took_s, self._order, batch))

    def answer(self):
        """The first batch ends; returns its size."""
        now_s, _, batch = heapq.heappop(self.ends)
        self._idle += 1
        for arrived in batch:
            self._in_flight -= 1
            self._limit.ended(now_s, answered=True)
            self._run.answered.append((arrived, now_s - arrived))
        return len(batch)

    def told(self):
        self._run.answered.sort()
        return self._run
