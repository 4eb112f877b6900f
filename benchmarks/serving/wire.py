"""One keep-alive HTTP/1.1 connection that knows one trick: a prebuilt request out, one response with a length in.

As little as possible happens per answer, since the generator shares the machine with what it measures: the status is
three bytes at a fixed place, the length one search, the body a slice that only a sample is made of. A response without
`content-length` is a protocol error here, chunked ones included.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
STATUS: Final = slice(9, 12)
"""Where the status lies in `HTTP/1.1 200 OK`."""


class Connection(asyncio.Protocol):
    """At most one request at a time. `answered(self, response, body_start)` and `lost(self, why)` are the owner's."""

    def __init__(
        self, answered: Callable[[Connection, bytes, int], None], lost: Callable[[Connection, str], None]
    ) -> None:
        self._answered = answered
        self._lost = lost
        self._transport: asyncio.WriteTransport | None = None
        self._held = b""
        self._body_start = 0
        self._end = 0
        self.sent_s = 0.0
        """When the request under way was due, on `time.perf_counter`'s clock."""
        self.is_greeting = False
        self.index = 0
        """Which request is under way, for the owner."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport: TCP_NODELAY is on by default."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's own do not derive from it

    def send(self, request: bytes) -> None:
        """Write the next request."""
        if self._transport is not None:
            self._transport.write(request)

    def greet(self, request: bytes) -> None:
        """Send a request whose answer nobody wants but to know that it came."""
        self.is_greeting = True
        self.send(request)

    def close(self) -> None:
        """End the connection without telling the owner."""
        self._lost = _nobody
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Tell the owner once the response is complete."""
        if self._held:
            data = self._held + data
        if not self._end and not self._read_head(data):
            self._held = data
            return
        if len(data) < self._end:
            self._held = data
            return
        self._held, self._end = b"", 0
        if self.is_greeting:
            self.is_greeting = False
            return
        self._answered(self, data, self._body_start)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, who counts it."""
        self._transport = None
        self._lost(self, repr(exc) if exc else "closed by the server")

    def _read_head(self, data: bytes) -> bool:
        at = data.find(_HEAD_END)
        if at < 0:
            return False
        self._body_start = at + len(_HEAD_END)
        found = _LENGTH.search(data, 0, self._body_start)
        if found is None:
            self._lost(self, "a response without content-length")
            self.close()
            return False
        self._end = self._body_start + int(found[1])
        return True


def _nobody(_connection: Connection, _why: str) -> None:
    return None
