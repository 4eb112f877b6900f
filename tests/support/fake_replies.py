"""`shared.replies.Replies` in memory, for tests of services without Redis. One contract suite runs on both.

`down` makes every command fail as if Redis did not answer; `pass_time` lets TTLs run out.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from shared.errors import RepliesUnavailable
from shared.replies import ANNOUNCED_PAYLOAD_BYTES, Claim, Ran, Reserved, Screened, marks_of
from shared.results import Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

Announced = list[tuple[str, str, Result | None]]


class FakeReplies:
    """The same public methods, with the same meaning."""

    def __init__(self, ttl_s: float = 3600) -> None:
        self.down = False
        self._ttl_s = ttl_s
        self._now_s = 0.0
        self._kept: dict[tuple[str, str, str], tuple[float, Any]] = {}
        self._channels: dict[str, list[asyncio.Queue[Announced]]] = defaultdict(list)
        self._running: dict[tuple[str, str, str], list[int]] = {}
        self._deaths: dict[tuple[str, str, int], int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        """A tenant's tokens, and when that was."""

    def pass_time(self, seconds_s: float) -> None:
        self._now_s += seconds_s

    @property
    def kept_s(self) -> float:
        return self._ttl_s

    async def ping(self) -> None:
        self._check()

    async def put(
        self, results: Sequence[Result], reply_to: Sequence[str | None] = (), ran: Ran | None = None
    ) -> list[Result]:
        self._check()
        winners = [
            Result.decode(self._first("result", result.model_name, result.id, result.encode())) for result in results
        ]
        for partition in ran.partitions if ran else ():
            self._running.pop((ran.model, partition, ran.run), None)
        waiting = defaultdict(list)
        for gateway, winner in zip(reply_to, winners, strict=False):
            if gateway:
                waiting[gateway].append(winner)
        for gateway, answers in waiting.items():
            message = [(winner.model_name, winner.id, _if_small(winner)) for winner in answers]
            for listener in self._channels[gateway]:
                listener.put_nowait(message)
        return winners

    async def get(self, keys: Sequence[tuple[str, str]]) -> list[Result | None]:
        self._check()
        stored = [self._look("result", model, request_id) for model, request_id in keys]
        return [None if data is None else Result.decode(data) for data in stored]

    async def claimed(self, model: str, request_id: str) -> Claim | None:
        self._check()
        found: Claim | None = self._look("claim", model, request_id)
        return found

    async def claim(self, model: str, request_id: str, claim: Claim) -> Claim:
        self._check()
        owner: Claim = self._first("claim", model, request_id, claim)
        return owner

    async def cancel(self, model: str, request_id: str) -> Result:
        error = {"code": "cancelled", "message": "cancelled by the caller"}
        [winner] = await self.put([Result(id=request_id, status="cancelled", model_name=model, error=error)])
        return winner

    async def screen(self, model: str, claims: Mapping[str, Claim], run: str | None = None) -> dict[str, Screened]:
        for partition, offsets in marks_of(claims.values()).items() if run else ():
            self._running[model, partition, run] = offsets
        owners = {request_id: await self.claim(model, request_id, claim) for request_id, claim in claims.items()}
        results = await self.get([(model, request_id) for request_id in claims])
        return {
            request_id: Screened(owner, result)
            for (request_id, owner), result in zip(owners.items(), results, strict=True)
        }

    @asynccontextmanager
    async def announcements(self, gateway: str) -> AsyncIterator[AsyncIterator[Announced]]:
        self._check()
        queue: asyncio.Queue[Announced] = asyncio.Queue()
        self._channels[gateway].append(queue)

        async def messages() -> AsyncIterator[Announced]:
            while True:
                yield await queue.get()

        try:
            yield messages()
        finally:
            self._channels[gateway].remove(queue)

    async def running(self, model: str) -> set[tuple[str, int]]:
        self._check()
        return {
            (where, offset)
            for (name, where, _), offsets in self._running.items()
            if name == model
            for offset in offsets
        }

    async def count_deaths(self, model: str, owner: str, partitions: Mapping[str, int]) -> dict[tuple[str, int], int]:
        self._check()
        for (name, partition, run), members in list(self._running.items()):
            if name != model or partition not in partitions or run.startswith(f"{owner}#"):
                continue
            del self._running[name, partition, run]
            for offset in members:
                if offset >= partitions[partition]:
                    at = (model, partition, offset)
                    self._deaths[at] = self._deaths.get(at, 0) + 1
        return {
            (partition, offset): count
            for (name, partition, offset), count in self._deaths.items()
            if name == model and partition in partitions
        }

    async def forget_deaths(self, model: str, coordinates: Iterable[tuple[str, int]]) -> None:
        self._check()
        for partition, offset in coordinates:
            self._deaths.pop((model, partition, offset), None)

    async def remember(self, model: str, request_id: str) -> None:
        self._check()
        claim = self._look("claim", model, request_id)
        if claim is not None:
            self._kept["claim", model, request_id] = (self._now_s + self._ttl_s, claim)

    async def reserve(self, model: str, request_id: str, digest: str, longer_s: float) -> Reserved:
        self._check()
        first: str = self._first("once", model, request_id, digest, self._ttl_s + longer_s)
        [result] = await self.get([(model, request_id)])
        return Reserved(first, await self.claimed(model, request_id), result)

    async def lease(self, tenant: str, *, rate: float, burst: int, wanted: int, back: int) -> tuple[int, float]:
        self._check()
        left, at_s = self._buckets.get(tenant, (burst, self._now_s))
        tokens = min(burst, left + back + (self._now_s - at_s) * rate)
        leased = min(wanted, math.floor(tokens))
        self._buckets[tenant] = tokens - leased, self._now_s
        return leased, math.ceil(max(0, 1 - tokens + leased) / rate * 1000) / 1000

    def _check(self) -> None:
        if self.down:
            raise RepliesUnavailable("Redis did not answer: this fake is down")

    def _look(self, kind: str, model: str, request_id: str) -> Any:
        until_s, value = self._kept.get((kind, model, request_id), (0.0, None))
        return value if until_s > self._now_s else None

    def _first(self, kind: str, model: str, request_id: str, offered: Any, kept_s: float | None = None) -> Any:
        """Keep what is offered unless something is there; returns what is there then."""
        found = self._look(kind, model, request_id)
        if found is None:
            self._kept[kind, model, request_id] = (self._now_s + (kept_s or self._ttl_s), offered)
        return offered if found is None else found


def _if_small(result: Result) -> Result | None:
    return result if len(result.encode()) <= ANNOUNCED_PAYLOAD_BYTES else None
