"""What streams follow: one reader of Redis for all of them, and an answer that was announced here at once.

A stream holds one `Following`: the latest state of its request, never a queue of states, so that a client which reads
slowly costs no memory and misses only what is outdated. As long as anybody follows anything, the running records of
the models concerned and the answers of all followed requests are read twice a second, in a bounded number of commands
whatever the number of streams; positions come from the heartbeats that the gateway holds anyway. Nobody following costs
nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from services.gateway.request_state import RequestState, state_of
from shared import logs
from shared.background import set_within
from shared.errors import Overloaded, RepliesUnavailable, Stopping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shared.heartbeats import Heartbeats
    from shared.replies import Claim, Replies
    from shared.reply_waiter import ReplyWaiter
    from shared.results import Result

_READ_INTERVAL_S: Final = 0.5
_READ_CHUNK: Final = 200
"""Results read in one command: bounds one reply of Redis, results being up to megabytes."""


class Following:
    """One stream's request: its latest state, and whether the stream is to end without its answer."""

    def __init__(self, claim: Claim, state: RequestState) -> None:
        self.claim = claim
        self.state = state
        self.over = False
        self.error: Stopping | None = None
        """Why the stream is over, if its client is to be told."""
        self._news = asyncio.Event()

    def tell(self, state: RequestState) -> None:
        """The request's state as of now. The first answer is the last state."""
        if not self.state.ended and state != self.state:
            self.state = state
            self._news.set()

    def end(self, error: Stopping | None = None) -> None:
        """The stream is to end: its client has gone, or this gateway goes."""
        self.over, self.error = True, error
        self._news.set()

    async def news(self, timeout_s: float) -> None:
        """Wait for another state or the end, but not longer than so."""
        await set_within(self._news, timeout_s)
        self._news.clear()


class RequestWatch:
    """The requests that streams of one gateway follow."""

    def __init__(self, replies: Replies, waiter: ReplyWaiter, heartbeats: Heartbeats, max_streams: int) -> None:
        self._replies = replies
        self._waiter = waiter
        self._heartbeats = heartbeats
        self._max_streams = max_streams
        self._streams = 0
        self._followed: dict[tuple[str, str], set[Following]] = {}
        self._anyone = asyncio.Event()
        self._stopping = False

    @contextmanager
    def following(self, model: str, request_id: str, claim: Claim, state: RequestState) -> Iterator[Following]:
        """Follow a request, which is in `state` now.

        Raises:
            Overloaded: as many streams as may be are open.
            Stopping: this gateway shuts down.
        """
        if self._stopping:
            raise _stopping()
        if self._streams >= self._max_streams:
            raise Overloaded(f"{self._streams} event streams are open here already: poll, or try again later")
        key, following = (model, request_id), Following(claim, state)
        with self._waiter.expected(model, request_id) as answer:
            answer.add_done_callback(lambda done: _answered(following, done))
            self._streams += 1
            self._followed.setdefault(key, set()).add(following)
            self._anyone.set()
            try:
                yield following
            finally:
                self._streams -= 1
                self._followed[key].discard(following)
                if not self._followed[key]:
                    del self._followed[key]

    def stop(self) -> None:
        """End all streams, and let none begin: who follows asks another gateway."""
        self._stopping = True
        for followings in self._followed.values():
            for following in followings:
                following.end(_stopping())

    async def run(self) -> None:
        """Read while anybody follows, until cancelled."""
        while True:
            await self._anyone.wait()
            try:
                await self._read()
            except RepliesUnavailable as err:
                logs.get().debug("states not read; streams keep the last", error=err.message)
            await asyncio.sleep(_READ_INTERVAL_S)
            if not self._followed:
                self._anyone.clear()

    async def _read(self) -> None:
        followed = list(self._followed)
        running = {model: await self._replies.running(model) for model in {model for model, _ in followed}}
        alive = self._heartbeats.alive()
        for start in range(0, len(followed), _READ_CHUNK):
            chunk = followed[start : start + _READ_CHUNK]
            for key, result in zip(chunk, await self._replies.get(chunk), strict=True):
                for following in self._followed.get(key, ()):
                    following.tell(state_of(following.claim, running[key[0]], result, alive))


def _answered(following: Following, answer: asyncio.Future[Result]) -> None:
    if not answer.cancelled() and answer.exception() is None:
        result = answer.result()
        following.tell(RequestState(result.status, result=result))


def _stopping() -> Stopping:
    return Stopping("this gateway is shutting down; the request runs on: ask another instance")
