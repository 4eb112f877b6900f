"""Waiting for answers: a future per caller, woken by announcements, backed by reading.

Announcements (pub/sub) make the wait short; they may be lost, so pending ids are also read from Redis after every
(re)connection and every second. Several may wait for one request, and each may stop waiting without the others
noticing. A reply for a caller that has gone is a normal case and is dropped.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

from shared import logs
from shared.background import beside
from shared.errors import RepliesUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from shared.replies import Replies
    from shared.results import Result

_READ_INTERVAL_S = 1.0
_READ_CHUNK = 200
"""Results read in one command: bounds one reply of Redis, results being up to megabytes."""


class Waiter(Protocol):
    """Who waits for an answer: a future, or what looks like one."""

    def done(self) -> bool:
        """Whether it waits no more."""

    def set_result(self, result: Result, /) -> None:
        """The answer."""

    def set_exception(self, error: BaseException, /) -> None:
        """There is none to wait for."""


class ReplyWaiter:
    """The requests that one gateway waits for. `healthy` says whether Redis answered lately."""

    def __init__(self, replies: Replies, instance: str) -> None:
        self._replies = replies
        self._instance = instance
        self._pending: dict[tuple[str, str], list[Waiter]] = {}
        self._background = beside(self._listen(), self._read())
        self.healthy = False

    async def __aenter__(self) -> Self:
        await self._background.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._background.__aexit__(kind, err, traceback)

    @contextmanager
    def expected(self, model: str, request_id: str) -> Iterator[asyncio.Future[Result]]:
        """The caller's own future of the answer, for as long as it waits. Enter it before producing the request."""
        future = asyncio.get_running_loop().create_future()
        self.expect(model, request_id, future)
        try:
            yield future
        finally:
            self.forget(model, request_id, future)

    def expect(self, model: str, request_id: str, waiter: Waiter) -> None:
        """As `expected`, until `forget`."""
        self._pending.setdefault((model, request_id), []).append(waiter)

    def forget(self, model: str, request_id: str, waiter: Waiter) -> None:
        """It waits no more."""
        waiters = self._pending[model, request_id]
        waiters.remove(waiter)
        if not waiters:
            del self._pending[model, request_id]

    def _resolve(self, model: str, request_id: str, result: Result) -> None:
        for waiter in tuple(self._pending.get((model, request_id), ())):
            if not waiter.done():
                waiter.set_result(result)

    async def _listen(self) -> None:
        log = logs.get()
        while True:
            try:
                async with self._replies.announcements(self._instance) as messages:
                    await self._read_pending()
                    async for answered in messages:
                        await self._announced(answered)
            except RepliesUnavailable as err:
                self.healthy = False
                log.warning("waiting for redis", what="announcements", error=err.message)
                await asyncio.sleep(_READ_INTERVAL_S)

    async def _announced(self, answered: list[tuple[str, str, Result | None]]) -> None:
        large = []
        for model, request_id, result in answered:
            if result is not None:
                self._resolve(model, request_id, result)
            elif (model, request_id) in self._pending:
                large.append((model, request_id))
        await self._read_keys(large)

    async def _read(self) -> None:
        while True:
            try:
                await self._replies.ping()
                self.healthy = True
                await self._read_pending()
            except RepliesUnavailable:
                self.healthy = False  # `_listen` says so in the log
            await asyncio.sleep(_READ_INTERVAL_S)

    async def _read_pending(self) -> None:
        await self._read_keys(
            [key for key, waiters in self._pending.items() if not all(waiter.done() for waiter in waiters)]
        )

    async def _read_keys(self, keys: list[tuple[str, str]]) -> None:
        for start in range(0, len(keys), _READ_CHUNK):
            chunk = keys[start : start + _READ_CHUNK]
            for (model, request_id), result in zip(chunk, await self._replies.get(chunk), strict=True):
                if result is not None:
                    self._resolve(model, request_id, result)
