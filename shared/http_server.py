"""uvicorn as our services run it: their socket, their signals, and TLS with a bound on its beginning and its end.

uvicorn leaves both to asyncio's defaults, a minute and half a minute, in which a client that says nothing holds a
connection that nobody counts. What the application and its protocol bound besides is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import uvicorn

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator

_TLS_HANDSHAKE_TIMEOUT_S: Final = 10.0
_TLS_SHUTDOWN_TIMEOUT_S: Final = 5.0


class Server(uvicorn.Server):
    """A server that leaves signals to `shared.process`; with a TLS context it speaks HTTPS alone."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(config)
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, on sockets that are there: `serve(sockets=[…])`."""
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {
                "ssl": self._tls,
                "ssl_handshake_timeout": _TLS_HANDSHAKE_TIMEOUT_S,
                "ssl_shutdown_timeout": _TLS_SHUTDOWN_TIMEOUT_S,
            }
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(self._protocol, sock=sock, backlog=self.config.backlog, **tls)
            for sock in sockets or ()
        ]
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as in uvicorn
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
