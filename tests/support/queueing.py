"""A gateway and its workers as a queue that is simulated: what an admission rule does to waits, without the waiting.

Workers take what queued up while they ran, up to a cap, and take `fixed_s + each_s · n` for it: natural batching.
Requests arrive at random (Poisson) or all at once; whoever is refused does not come back.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field


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


def simulate(served, limit, arrivals, *, speed=lambda _now_s: 1.0):
    """Let `arrivals` (times, ascending) at the queue behind `limit`; `speed(now_s)` 0.5 is workers at half speed."""
    run, waiting, in_flight, idle = Run(), deque(), 0, served.workers
    events = []  # (when, order, batch) of batches that end
    arriving = iter(arrivals)
    upcoming = next(arriving, None)
    order = 0
    while upcoming is not None or events:
        if upcoming is not None and (not events or upcoming < events[0][0]):
            now_s, upcoming = upcoming, next(arriving, None)
            if in_flight >= limit.value:
                limit.refused()
                run.refused.append(now_s)
            else:
                limit.began(now_s)
                in_flight += 1
                waiting.append(now_s)
        else:
            now_s, _, batch = heapq.heappop(events)
            idle += 1
            for arrived in batch:
                in_flight -= 1
                limit.ended(now_s, answered=True)
                run.answered.append((arrived, now_s - arrived))
        run.most_in_flight = max(run.most_in_flight, in_flight)
        while idle and waiting:
            batch = [waiting.popleft() for _ in range(min(served.cap, len(waiting)))]
            order, idle = order + 1, idle - 1
            duration_s = (served.fixed_s + served.each_s * len(batch)) / speed(now_s)
            heapq.heappush(events, (now_s + duration_s, order, batch))
    run.answered.sort()
    return run


def simulate_callers(served, limit, callers, until_s):
    """`callers` that each ask again as soon as they are answered; whoever is refused waits a second."""
    run, waiting, in_flight, idle, order = Run(), deque(), 0, served.workers, 0
    events = [(0.0, n, None) for n in range(callers)]  # a caller asks, or a batch ends
    heapq.heapify(events)
    order = callers
    while events:
        now_s, _, batch = heapq.heappop(events)
        if batch is None:
            if now_s >= until_s:
                continue
            if in_flight >= limit.value:
                limit.refused()
                run.refused.append(now_s)
                order += 1
                heapq.heappush(events, (now_s + 1.0, order, None))
            else:
                limit.began(now_s)
                in_flight += 1
                waiting.append(now_s)
        else:
            idle += 1
            for arrived in batch:
                in_flight -= 1
                limit.ended(now_s, answered=True)
                run.answered.append((arrived, now_s - arrived))
                order += 1
                heapq.heappush(events, (now_s, order, None))
        run.most_in_flight = max(run.most_in_flight, in_flight)
        if events and events[0][0] == now_s:
            continue  # everything of this moment first, then the batch
        while idle and waiting:
            taken = [waiting.popleft() for _ in range(min(served.cap, len(waiting)))]
            order, idle = order + 1, idle - 1
            heapq.heappush(events, (now_s + served.fixed_s + served.each_s * len(taken), order, taken))
    run.answered.sort()
    return run
