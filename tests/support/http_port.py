"""The gateway's HTTP server with another application behind it, for tests of what uvicorn is told to do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from services.gateway import http_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Receive, Scope, Send

    from services.gateway.settings import GatewaySettings


@contextlib.asynccontextmanager
async def served(app: ASGIApp, settings: GatewaySettings, *args: Any) -> AsyncIterator[None]:
    """Serve on the port of `settings`; stopped at the end, also of a test that failed."""
    server = http_server.server(app, settings, *args)
    with http_server.listen(settings) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving


async def hello(_scope: Scope, _receive: Receive, send: Send) -> None:
    """An application that answers everything with `hi`."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})
