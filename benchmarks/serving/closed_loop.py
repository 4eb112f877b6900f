"""The load generator for a fixed number of callers, each of which sends its next request when it has its answer.

A process of its own (`python -m benchmarks.serving.closed_loop`), so that its CPU time can be told from that of what it
measures. Reads a `Load` as JSON from its standard input; prints the line `measuring` when the warm-up is over, and a
line of JSON, a `Measured`, at the end of the window. Answers that arrive within the window count, whenever they were
asked for.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import uvloop

from benchmarks.serving.wire import STATUS, Connection

SAMPLES = 16
"""The last answer to each of the first so many requests is kept, to be compared with what is right."""
_CONNECT_TIMEOUT_S = 20.0
_LAST_ANSWERS_S = 30.0
_MOST_FAULTS = 1000


@dataclass(frozen=True, slots=True)
class Load:
    """What to send. `requests` are complete HTTP requests, latin-1; callers take them in turns."""

    host: str
    port: int
    requests: list[str]
    callers: int
    warmup_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it within the window: times in milliseconds, shares of one core."""

    window_s: float
    answered: int
    statuses: dict[str, int]
    faults: dict[str, int]
    """Connections lost, and requests without an answer at the end, by reason."""
    p50_ms: float
    p99_ms: float
    mean_ms: float
    generator_cpu_share: float
    samples: dict[int, str] = field(default_factory=dict)
    """Body of the last answer, by the request's number."""


def quantile(ordered: list[float], q: float) -> float:
    """The smallest value that is not below a share `q` of all; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


class ClosedLoop:
    """Callers that ask and ask again, until the window is over."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = [request.encode("latin-1") for request in load.requests]
        self._latencies_s = array("d")
        self._statuses: Counter[bytes] = Counter()
        self._faults: Counter[str] = Counter()
        self._samples: dict[int, bytes] = {}
        self._next = 0
        self._over = False
        self._reconnects: set[asyncio.Task[None]] = set()
        self._waiting: set[Connection] = set()
        self._quiet = asyncio.Event()

    async def run(self) -> Measured:
        """Warm up, measure, let the last answers come in."""
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await asyncio.gather(*(self._call() for _ in range(self._load.callers)))
        await asyncio.sleep(self._load.warmup_s)
        self._latencies_s, self._statuses = array("d"), Counter()
        print("measuring", flush=True)
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        await asyncio.sleep(self._load.window_s)
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
        latencies_ms, statuses = sorted(1000 * each for each in self._latencies_s), dict(self._statuses)
        print("measured", flush=True)
        await self._finish()
        return Measured(
            window_s=took_s,
            answered=len(latencies_ms),
            statuses={status.decode("latin-1"): count for status, count in statuses.items()},
            faults=dict(self._faults),
            p50_ms=quantile(latencies_ms, 0.50),
            p99_ms=quantile(latencies_ms, 0.99),
            mean_ms=sum(latencies_ms) / max(1, len(latencies_ms)),
            generator_cpu_share=cpu_s / took_s,
            samples={number: body.decode("latin-1") for number, body in self._samples.items()},
        )

    async def _call(self) -> None:
        """Connect one caller and have it ask."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._answered, self._lost), self._load.host, self._load.port
        )
        self._waiting.add(connection)
        self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        number = self._next
        self._next = (number + 1) % len(self._requests)
        connection.index = number
        connection.sent_s = time.perf_counter()
        connection.send(self._requests[number])

    def _answered(self, connection: Connection, response: bytes, body_start: int) -> None:
        self._latencies_s.append(time.perf_counter() - connection.sent_s)
        self._statuses[response[STATUS]] += 1
        if connection.index < SAMPLES:
            self._samples[connection.index] = response[body_start:]
        if self._over:
            self._done_with(connection)
        else:
            self._ask(connection)

    def _done_with(self, connection: Connection) -> None:
        self._waiting.discard(connection)
        if not self._waiting:
            self._quiet.set()

    def _lost(self, connection: Connection, why: str) -> None:
        self._done_with(connection)
        self._faults[why] += 1
        if not self._over and self._faults.total() < _MOST_FAULTS:
            task = asyncio.create_task(self._call())
            self._reconnects.add(task)
            task.add_done_callback(self._reconnected)

    def _reconnected(self, task: asyncio.Task[None]) -> None:
        self._reconnects.discard(task)
        if not task.cancelled() and (err := task.exception()) is not None:
            self._faults[repr(err)] += 1

    async def _finish(self) -> None:
        """Wait for the answers under way, so that the next slice begins on a quiet server."""
        self._over = True
        if self._waiting:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), _LAST_ANSWERS_S)
        if self._waiting:
            self._faults["no answer"] += len(self._waiting)


def main() -> None:
    load = Load(**json.load(sys.stdin))
    loop = ClosedLoop(load)
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a collection would be a pause of the generator's own
    print(json.dumps(asdict(uvloop.run(loop.run()))), flush=True)


if __name__ == "__main__":
    main()
