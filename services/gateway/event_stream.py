"""A request's states as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    event: state        queued or running, at once and at each change
    event: outcome      succeeded, failed, expired or cancelled, with the result or the error; then the stream ends
    event: stopping     this gateway shuts down: `{"error", "code"}`; then the stream ends

`data` of the first two is what `GET …/requests/{id}` answers. `id` names the state, not a place in a history: whoever
comes back gets the present state. So does whoever reads slowly; what was overtaken is left out. `retry` and the end of
a stream that has lasted its time make an `EventSource` come back by itself, until 204 tells it that it has had the
outcome.

Comments keep proxies from closing a quiet stream. Every piece has its time to be taken (`edge`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.responses import Response

from services.gateway.connection import watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractContextManager

    from starlette.types import Receive, Scope, Send

    from services.gateway.request_state import RequestState
    from services.gateway.request_watch import Following

MEDIA_TYPE: Final = "text/event-stream"
_RETRY_MS: Final = 1000
_KEEP_ALIVE_S: Final = 15.0
_KEEP_ALIVE: Final = b": nothing new\n\n"


class EventStream(Response):
    """The answer to a stream's GET. What `following` raises on entering becomes an error as anywhere else."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        following: AbstractContextManager[Following],
        shown: Callable[[RequestState], Mapping[str, Any]],
        lifetime_s: float,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._following = following
        self._shown = shown
        self._lifetime_s = lifetime_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the outcome, the client's leaving, the end of this gateway or of the stream's time."""
        with self._following as following:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with watched(scope, receive, following.end):
                async for piece in self._pieces(following):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _pieces(self, following: Following) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        end_s = clock() + self._lifetime_s
        state = following.state
        yield b"retry: %d\n%b" % (_RETRY_MS, self._event(state))
        while not state.ended and (left_s := end_s - clock()) > 0:
            await following.news(min(_KEEP_ALIVE_S, left_s))
            if following.over:
                if following.error is not None:
                    err = following.error
                    yield event("stopping", orjson.dumps({"error": err.message, "code": err.code}))
                return
            told, state = state, following.state
            yield _KEEP_ALIVE if state is told else self._event(state)

    def _event(self, state: RequestState) -> bytes:
        name = "outcome" if state.ended else "state"
        return event(name, orjson.dumps(self._shown(state)), event_id(state))


def event_id(state: RequestState) -> str:
    """The `id` of a state's event."""
    return state.state if state.queue_position is None else f"{state.state}-{state.queue_position}"


def event(name: str, data: bytes, identity: str | None = None) -> bytes:
    """One event. `data` must be one line, as compact JSON is."""
    id_line = f"id: {identity}\n" if identity is not None else ""
    return f"event: {name}\n{id_line}data: ".encode() + data + b"\n\n"
