"""The load generator for a fixed arrival rate, whatever becomes of the answers: what an overload is made of.

A process of its own (`python -m benchmarks.serving.open_loop`) that reads an `OpenLoad` as JSON. Requests are due at
even distances. One that finds no free connection waits for one, and its time counts from when it was due, so a slow
server can't slow its own load down unseen. Answers are kept apart by the second in which they were due and by kind:
accepted (200), rejected (429, 503), and anything else.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Final

import uvloop

from benchmarks.serving.closed_loop import quantile
from benchmarks.serving.wire import STATUS, Connection

_TICK_S: Final = 0.001
_CONNECT_AT_ONCE: Final = 64
_LAST_ANSWERS_S: Final = 30.0
_REJECTIONS: Final = frozenset({b"429", b"503"})
_RETRY_AFTER: Final = b"\r\nretry-after:"


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """What to send, `rate_per_s` for `window_s`, over at most so many connections, all opened before."""

    host: str
    port: int
    requests: list[str]
    rate_per_s: float
    window_s: float
    connections: int
    greeting: str
    """A request that costs the server next to nothing, sent once on each connection before."""


@dataclass(frozen=True, slots=True)
class Second:
    """What became of the requests that were due within one second; times in milliseconds."""

    accepted: int
    accepted_p50_ms: float
    accepted_p99_ms: float
    rejected: int
    rejected_p50_ms: float
    rejected_p99_ms: float
    rejected_max_ms: float


@dataclass(frozen=True, slots=True)
class OpenMeasured:
    """All seconds, and their sum as `whole`."""

    window_s: float
    offered: int
    statuses: dict[str, int]
    faults: dict[str, int]
    without_retry_after: int
    """Rejections that do not say when to come back."""
    whole: Second
    seconds: list[Second]
    sent_late_p99_ms: float
    """How long requests waited in the generator for its own turn or a free connection."""
    generator_cpu_share: float


class OpenLoop:
    """Sends what is due at each tick on connections that are free."""

    def __init__(self, load: OpenLoad) -> None:
        self._load = load
        self._requests = [request.encode("latin-1") for request in load.requests]
        self._free: deque[Connection] = deque()
        self._due_s: deque[float] = deque()
        self._under_way = 0
        self._accepted: list[tuple[float, float]] = []
        self._rejected: list[tuple[float, float]] = []
        self._late_s: list[float] = []
        self._statuses: Counter[bytes] = Counter()
        self._faults: Counter[str] = Counter()
        self._silent = 0
        self._sent = 0

    async def run(self) -> OpenMeasured:
        """Connect, send for the window, wait for the last answers."""
        for start in range(0, self._load.connections, _CONNECT_AT_ONCE):
            await asyncio.gather(
                *(self._connect() for _ in range(min(_CONNECT_AT_ONCE, self._load.connections - start)))
            )
            await self._accepted_by_server()
        print("measuring", flush=True)
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        await self._send_all(began_s)
        deadline_s = time.perf_counter() + _LAST_ANSWERS_S
        while (self._under_way or self._due_s) and time.perf_counter() < deadline_s:
            self._send_due()
            await asyncio.sleep(_TICK_S)
        cpu_share = (time.process_time() - cpu_began_s) / (time.perf_counter() - began_s)
        print("measured", flush=True)
        if self._under_way or self._due_s:
            self._faults["no answer"] += self._under_way + len(self._due_s)
        return OpenMeasured(
            window_s=self._load.window_s,
            offered=self._sent + len(self._due_s),
            statuses={status.decode("latin-1"): count for status, count in self._statuses.items()},
            faults=dict(self._faults),
            without_retry_after=self._silent,
            whole=_second(self._accepted, self._rejected),
            seconds=self._seconds(began_s),
            sent_late_p99_ms=1000 * quantile(sorted(self._late_s), 0.99),
            generator_cpu_share=cpu_share,
        )

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._answered, self._lost), self._load.host, self._load.port
        )
        self._free.append(connection)

    async def _accepted_by_server(self) -> None:
        """A connection that the server has not accepted yet looks open here, and what is sent on it waits for that."""
        waiting = {connection for connection in self._free if connection.index == 0}
        for connection in waiting:
            connection.index = 1
            connection.greet(self._load.greeting.encode("latin-1"))
        while any(connection.is_greeting for connection in waiting):  # noqa: ASYNC110 - thousands, a moment, once
            await asyncio.sleep(_TICK_S)

    async def _send_all(self, began_s: float) -> None:
        """Put due what is due, tick by tick."""
        count, put = int(self._load.rate_per_s * self._load.window_s), 0
        while put < count:
            due = min(count, int((time.perf_counter() - began_s) * self._load.rate_per_s) + 1)
            self._due_s.extend(began_s + number / self._load.rate_per_s for number in range(put, due))
            put = due
            self._send_due()
            await asyncio.sleep(_TICK_S)

    def _send_due(self) -> None:
        while self._due_s and self._free:
            connection = self._free.popleft()
            connection.sent_s = self._due_s.popleft()
            self._late_s.append(time.perf_counter() - connection.sent_s)
            self._under_way += 1
            connection.send(self._requests[self._sent % len(self._requests)])
            self._sent += 1

    def _answered(self, connection: Connection, response: bytes, body_start: int) -> None:
        took = connection.sent_s, time.perf_counter() - connection.sent_s
        status = response[STATUS]
        self._statuses[status] += 1
        self._under_way -= 1
        if status == b"200":
            self._accepted.append(took)
        elif status in _REJECTIONS:
            self._rejected.append(took)
            self._silent += _RETRY_AFTER not in response[:body_start].lower()
        self._free.append(connection)

    def _lost(self, connection: Connection, why: str) -> None:
        self._faults[why] += 1
        if connection in self._free:
            self._free.remove(connection)
        else:
            self._under_way -= 1

    def _seconds(self, began_s: float) -> list[Second]:
        def within(answers: list[tuple[float, float]], second: int) -> list[tuple[float, float]]:
            return [(due_s, took_s) for due_s, took_s in answers if second <= due_s - began_s < second + 1]

        return [
            _second(within(self._accepted, second), within(self._rejected, second))
            for second in range(int(self._load.window_s))
        ]


def _second(accepted: list[tuple[float, float]], rejected: list[tuple[float, float]]) -> Second:
    good_ms, bad_ms = (sorted(1000 * took_s for _, took_s in answers) for answers in (accepted, rejected))
    return Second(
        accepted=len(good_ms),
        accepted_p50_ms=quantile(good_ms, 0.50),
        accepted_p99_ms=quantile(good_ms, 0.99),
        rejected=len(bad_ms),
        rejected_p50_ms=quantile(bad_ms, 0.50),
        rejected_p99_ms=quantile(bad_ms, 0.99),
        rejected_max_ms=bad_ms[-1] if bad_ms else 0.0,
    )


def main() -> None:
    load = OpenLoad(**json.load(sys.stdin))
    loop = OpenLoop(load)
    gc.freeze()
    gc.disable()
    print(json.dumps(asdict(uvloop.run(loop.run()))), flush=True)


if __name__ == "__main__":
    main()
