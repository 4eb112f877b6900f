"""uvicorn as the gateway runs it: our socket, our signals, a bound on everything a slow client can hold.

uvicorn bounds idle connections and their number; `_Protocol` adds the time and the bytes that the head of a request may
take, which uvicorn leaves open. Bodies and answers are bounded in `bodies` and `edge`, TLS in `shared.http_server`.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Final

import uvicorn

from services.gateway import connection
from services.gateway.deadlines import Deadlines
from services.gateway.express_connection import ExpressConnection
from shared import tls
from shared.http_server import Server

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from services.gateway.express import Express
    from services.gateway.settings import GatewaySettings
    from services.gateway.turnstile import Door

_HEAD_TIMEOUT_S: Final = 10.0
_MOST_HEAD_BYTES: Final = 64 * 1024
_REST_BYTES: Final = 1024 * 1024
"""Of a body that nobody waits for any more; `edge` sees to longer ones."""
_KEEP_ALIVE_S: Final = 60
_BACKLOG: Final = 4096
_AFTER_DRAIN_S: Final = 5
"""What connections get to take the answers that the end of the drain gave them."""


def listen(settings: GatewaySettings) -> socket.socket:
    """The bound socket.

    Raises:
        OSError: the address can't be had; the message names the variables.
    """
    host, port = settings.gateway_host, settings.gateway_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=settings.gateway_shares_port
        )
    except OSError as err:
        raise OSError(f"AIAAS_GATEWAY_HOST={host} AIAAS_GATEWAY_PORT={port}: {err}") from err


def server(app: ASGIApp, settings: GatewaySettings, door: Door | None = None, express: Express | None = None) -> Server:
    """The server; `serve(sockets=[…])` runs it until `should_exit` is set.

    `door` is asked by the `turnstile`; `express` answers what it can before `app` is asked.
    """
    return Server(
        uvicorn.Config(
            app,
            http=type(
                "Protocol",
                (_Protocol,),
                {
                    "door": door,
                    "express": express,
                    "deadlines": Deadlines() if express is None else express.deadlines,
                    "most_connections": settings.max_connections,
                },
            ),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + _AFTER_DRAIN_S,
        ),
        _tls(settings),
    )


def _tls(settings: GatewaySettings) -> ssl.SSLContext | None:
    if settings.gateway_tls_certfile is None:
        return None
    return tls.server_context(
        settings.gateway_tls_certfile, settings.gateway_tls_keyfile, settings.gateway_tls_client_cafile
    )


class _Protocol(ExpressConnection):
    """Closes connections on which the head of a request does not arrive in time, or is longer than any should be.

    A request that is answered before its body has come must go on in the same time: its rest, and the next head.
    """

    _head_due: asyncio.TimerHandle | None = None
    """Runs only while a head is not there in whole: most come in one piece, and need no timer."""
    _in_head = True
    _head_bytes = 0
    """Of the head that is arriving: its finished lines, or all that came while it was not finished."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        self._when_lost: set[Callable[[], None]] = set()
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        data = self.rest_of(data)
        if not data:
            self._head_is_there()
            return
        self.read_usually(data)

    def read_usually(self, data: bytes) -> None:
        super().read_usually(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._expect_head()
        self._head_bytes += len(data)
        if self._head_bytes > _MOST_HEAD_BYTES and not self.is_holding:
            self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = {connection.EXTENSION: self}  # type: ignore[dict-item]  # ASGI leaves it to servers

    @property
    def has_body(self) -> bool:
        """As `Connection` has it. Of requests that were pipelined, nothing is known."""
        return not self.pipeline and not self.cycle.more_body

    @property
    def takes(self) -> bool:
        """As `Connection` has it."""
        return not self.flow.write_paused

    def when_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """As `Connection` has it."""
        if self.transport.is_closing():
            self.loop.call_soon(callback)
        self._when_lost.add(callback)
        return lambda: self._when_lost.discard(callback)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MOST_HEAD_BYTES:
            raise ValueError("the head is too long")  # the parser stops, and the answer is 400
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if not self.is_holding:  # a body that is held there has to come in the same time
            self._head_is_there()

    def on_message_complete(self) -> None:
        if self.is_holding:
            self._head_is_there()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body and self.cycle.response_complete:  # the last one, if requests were pipelined
            self._in_head, self._head_bytes = True, -_REST_BYTES
            self._expect_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        for callback in tuple(self._when_lost):
            callback()

    def _expect_head(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.call_later(_HEAD_TIMEOUT_S, self.transport.close)

    def _head_is_there(self) -> None:
        self._in_head = False
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
