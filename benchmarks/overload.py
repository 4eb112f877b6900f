"""Overload: what becomes of answers and refusals when three times the capacity is offered.

    python -m benchmarks.overload URL MODEL BODY_FILE [--seconds 10] [--times 3] [--pid GATEWAY_PID]

Against a gateway that runs. Callers that each have one request at a time (64, then 256) find the capacity and what
answers wait there; then that rate times `--times` is offered at random moments whatever comes back (an open loop), and
after five seconds of rest the callers ask again. Latencies count from the moment a request was due. The generator
shares the machine with what it measures; how late it was itself is printed, and part of every latency.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop

from benchmarks.serving.wire import STATUS, Connection

_CALLERS = (64, 256)
_MOST_CONNECTIONS = 1000
"""Of the open loop: a request that is due while all of them wait is not sent, and counted."""
_REST_S = 5.0
_LAST_ANSWERS_S = 90.0


class Load:
    """Requests over many connections, and what became of each: its status and how long it took."""

    def __init__(self, url: str, model: str, body: bytes) -> None:
        address = urlsplit(url)
        self._where = address.hostname or "127.0.0.1", address.port or 80
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._idle: list[Connection] = []
        self._open = 0
        self._came_back = asyncio.Event()
        self._callers_until_s = 0.0
        self.took_s: dict[bytes, list[float]] = {}
        self.lost: Counter[str] = Counter()
        self.without_retry_after = 0
        self.unsent = 0
        self.late_s: list[float] = []

    async def callers(self, count: int, seconds: float) -> dict[str, Any]:
        """So many, each asking again at once."""
        self._forget()
        await self._connect(count)
        until_s = time.perf_counter() + seconds
        self._callers_until_s = until_s
        for connection in [self._idle.pop() for _ in range(count)]:
            self._send(connection, time.perf_counter())
        await asyncio.sleep(seconds)
        await self._all_back()
        self._callers_until_s = 0.0
        return {"callers": count, **self._told(seconds)}

    async def at_rate(self, rate: float, seconds: float) -> dict[str, Any]:
        """At random moments, so many a second on average."""
        self._forget()
        await self._connect(_MOST_CONNECTIONS)
        due_s = began_s = time.perf_counter()
        while (due_s := due_s + random.expovariate(rate)) < began_s + seconds:
            if (ahead_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(ahead_s)
            self.late_s.append(time.perf_counter() - due_s)
            if self._idle:
                self._send(self._idle.pop(), due_s)
            else:
                self.unsent += 1
        await self._all_back()
        return {"offered": rate, **self._told(seconds)}

    def _send(self, connection: Connection, due_s: float) -> None:
        connection.sent_s = due_s
        connection.send(self._request)

    def _answered(self, connection: Connection, response: bytes, body_start: int) -> None:
        now_s = time.perf_counter()
        status = response[STATUS]
        self.took_s.setdefault(status, []).append(now_s - connection.sent_s)
        if status == b"503" and b"\r\nretry-after: " not in response[:body_start].lower():
            self.without_retry_after += 1
        if now_s < self._callers_until_s:
            self._send(connection, now_s)
        else:
            self._idle.append(connection)
            self._came_back.set()

    def _lost(self, _connection: Connection, why: str) -> None:
        self.lost[why] += 1
        self._open -= 1
        self._came_back.set()

    async def _connect(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        while self._open < count:
            _, connection = await loop.create_connection(lambda: Connection(self._answered, self._lost), *self._where)
            self._idle.append(connection)
            self._open += 1

    async def _all_back(self) -> None:
        async with asyncio.timeout(_LAST_ANSWERS_S):
            while len(self._idle) < self._open:
                self._came_back.clear()
                await self._came_back.wait()

    def _forget(self) -> None:
        self.took_s, self.lost, self.late_s = {}, Counter(), []
        self.without_retry_after = self.unsent = 0

    def _told(self, seconds: float) -> dict[str, Any]:
        statuses = {
            status.decode(): {
                "count": len(took_s),
                "per_s": round(len(took_s) / seconds),
                **{f"p{share}_ms": round(percentile(took_s, share) * 1000, 1) for share in (50, 99)},
                "max_ms": round(max(took_s) * 1000, 1),
            }
            for status, took_s in sorted(self.took_s.items())
        }
        told: dict[str, Any] = {"statuses": statuses, "connections": self._open}
        if self.lost:
            told["lost"] = dict(self.lost)
        if self.without_retry_after:
            told["without_retry_after"] = self.without_retry_after
        if self.unsent:
            told["unsent"] = self.unsent
        if self.late_s:
            told["generator_late_p99_ms"] = round(percentile(self.late_s, 99) * 1000, 1)
        return told


def percentile(values: list[float], share: int) -> float:
    """The value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


async def main(args: argparse.Namespace) -> None:
    """Print one line of JSON a phase."""
    load = Load(args.url, args.model, args.body.read_bytes())
    gateway = psutil.Process(args.pid) if args.pid else None

    def tell(phase: str, told: dict[str, Any]) -> None:
        rss = {"gateway_rss_mb": round(gateway.memory_info().rss / 1e6, 1)} if gateway else {}
        print(json.dumps({"phase": phase, **told, **rss}), flush=True)

    await load.callers(_CALLERS[0], 3)  # warm
    capacity = 0.0
    for callers in _CALLERS:
        told = await load.callers(callers, args.seconds)
        tell("capacity", told)
        capacity = max(capacity, told["statuses"].get("200", {}).get("per_s", 0))
    tell("overload", await load.at_rate(args.times * capacity, args.seconds))
    await asyncio.sleep(_REST_S)
    for callers in _CALLERS:
        tell("after", await load.callers(callers, args.seconds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("body", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--pid", type=int)
    uvloop.run(main(parser.parse_args()))
