"""`GET /live` and `GET /ready` for services that serve no other HTTP, for supervisors and orchestrators.

Live: the event loop turns. Ready: the service does its work; the body says what it waits for if not.
One short response per connection; anything that is not such a request gets 404 or is closed.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_READ_TIMEOUT_S = 2.0


@asynccontextmanager
async def served(host: str, port: int | None, waiting_for: Callable[[], str | None]) -> AsyncIterator[None]:
    """Serve health on a port (not at all if None). `waiting_for` names what is missing, None when ready."""
    if port is None:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(request.split(b" ")[1:2], waiting_for()))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # whoever asked has gone or did not ask: there is nobody to tell
        finally:
            writer.close()

    async with await asyncio.start_server(answer, host, port):
        yield


def _response(path: list[bytes], missing: str | None) -> bytes:
    body: dict[str, bool | str]
    match path:
        case [b"/live"]:
            status, body = b"200 OK", {"live": True}
        case [b"/ready"]:
            status = b"503 Service Unavailable" if missing else b"200 OK"
            body = {"ready": missing is None, **({"waiting_for": missing} if missing else {})}
        case _:
            status, body = b"404 Not Found", {"error": "only /live and /ready"}
    content = orjson.dumps(body)
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (
        status,
        len(content),
        content,
    )
