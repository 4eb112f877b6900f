"""`shared.replies.Replies` in memory, for tests of services without Redis. One contract suite runs on both.

`down` makes every command fail as if Redis did not answer; `pass_time` lets TTLs run out.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from shared.errors import RepliesUnavailable
from shared.replies import ANNOUNCED_PAYLOAD_BYTES, Claim, Result, Screened

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
        self._running: dict[tuple[str, int, str], list[int]] = {}
        self._deaths: dict[tuple[str, int, int], int] = {}

    def pass_time(self, seconds_s: float) -> None:
        self._now_s += seconds_s

    async def ping(self) -> None:
        self._check()

    async def put(self, results: Sequence[Result]) -> list[Result]:
        self._check()
        return [
            Result.decode(self._first("result", result.model_name, result.id, result.encode())) for result in results
        ]

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

    async def screen(self, model: str, claims: Mapping[str, Claim]) -> dict[str, Screened]:
        owners = {request_id: await self.claim(model, request_id, claim) for request_id, claim in claims.items()}
        results = await self.get([(model, request_id) for request_id in claims])
        return {
            request_id: Screened(owner, result)
            for (request_id, owner), result in zip(owners.items(), results, strict=True)
        }

    async def announce(self, channel_results: Mapping[str, Sequence[Result]]) -> None:
        self._check()
        for gateway, results in channel_results.items():
            message = [(result.model_name, result.id, _if_small(result)) for result in results]
            for listener in self._channels[gateway]:
                listener.put_nowait(message)

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

    async def mark_running(self, model: str, run: str, offsets: Mapping[int, Sequence[int]]) -> None:
        self._check()
        for partition, members in offsets.items():
            self._running[model, partition, run] = list(members)

    async def mark_ran(self, model: str, run: str, partitions: Iterable[int]) -> None:
        self._check()
        for partition in partitions:
            self._running.pop((model, partition, run), None)

    async def count_deaths(self, model: str, owner: str, partitions: Mapping[int, int]) -> dict[tuple[int, int], int]:
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

    async def forget_deaths(self, model: str, coordinates: Iterable[tuple[int, int]]) -> None:
        self._check()
        for partition, offset in coordinates:
            self._deaths.pop((model, partition, offset), None)

    def _check(self) -> None:
        if self.down:
            raise RepliesUnavailable("Redis did not answer: this fake is down")

    def _look(self, kind: str, model: str, request_id: str) -> Any:
        until_s, value = self._kept.get((kind, model, request_id), (0.0, None))
        return value if until_s > self._now_s else None

    def _first(self, kind: str, model: str, request_id: str, offered: Any) -> Any:
        """Keep what is offered unless something is there; returns what is there then."""
        found = self._look(kind, model, request_id)
        if found is None:
            self._kept[kind, model, request_id] = (self._now_s + self._ttl_s, offered)
        return offered if found is None else found


def _if_small(result: Result) -> Result | None:
    return result if len(result.encode()) <= ANNOUNCED_PAYLOAD_BYTES else None
