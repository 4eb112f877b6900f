"""The outermost layer of the application: every answer is counted, bounded in time, and ended politely.

Politely: when we answer before a large body has arrived (a 413, say), closing at once would reset the connection, and
the client might never read our answer. So the answer is sent, the rest is read and thrown away for a bounded time,
and then the connection closes ("lingering close", RFC 9112, section 9.6). Small rests are left to uvicorn, which skips
them and keeps the connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from services.gateway import connection
from services.gateway.answers import UNAVAILABLE
from shared import logs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from services.gateway.gateway import Gateway

_SMALL_BYTES: Final = 1024 * 1024
_LINGER_S: Final = 5.0


class Edge:
    """Wraps the application of one gateway."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._gateway, scope, receive, send)
        self._gateway.in_flight += 1
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not exchange.stalled:
                raise
            logs.get().warning("a client took nothing of its answer", path=scope["path"])
        finally:
            self._gateway.in_flight -= 1


class _Exchange:
    """One request and its answer, watched on the way through."""

    def __init__(self, gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._receive = receive
        self._send = send
        self._connection = connection.of(scope)
        self._large = _is_large(scope["headers"])
        self._looks = scope["method"] in ("GET", "HEAD")
        self._unread = True
        self.stalled = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        lingers = self._unread and self._large
        if message["type"] == "http.response.start":
            self._gateway.answered[message["status"]] += 1
            self._gateway.unready += self._looks and message["status"] == UNAVAILABLE
            if lingers:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await self._within_bound(message)
        elif lingers and not message.get("more_body", False):
            await self._within_bound({**message, "more_body": True})
            await self._linger()
            await self._within_bound({"type": "http.response.body", "body": b""})
        else:
            await self._within_bound(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_S):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            return  # it had its time; closing is all that is left

    async def _within_bound(self, message: Message) -> None:
        if self._connection is not None and self._connection.takes:
            await self._send(message)
            return
        try:
            async with asyncio.timeout(self._gateway.settings.stall_timeout_s):
                await self._send(message)
        except TimeoutError:
            self.stalled = True
            raise


def _is_large(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body is long, or may be."""
    for name, value in headers:
        if name == b"transfer-encoding":
            return True
        if name == b"content-length":
            return not value.isdigit() or int(value[:20]) > _SMALL_BYTES
    return False
