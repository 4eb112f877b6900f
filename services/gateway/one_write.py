"""A transport that writes once a turn of the event loop.

uvicorn writes the head of an answer and its body one after the other: two system calls, two packets, and a client that
is woken twice. Here what one turn writes goes together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio


_MOST_BYTES: Final = 64 * 1024
"""More is written at once: so the transport can say that it is enough."""


class OneWrite:
    """Everything but writing and closing is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []
        self._size_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, when this turn is over."""
        self._written.append(data)
        self._size_bytes += len(data)
        if self._size_bytes > _MOST_BYTES:
            self.flush()
        elif len(self._written) == 1:
            self._loop.call_soon(self.flush)

    def is_closing(self) -> bool:
        """As the transport says: asked often, so not looked up."""
        return self._transport.is_closing()

    def write_whole(self, data: bytes) -> None:
        """Write what nothing follows in this turn."""
        self.flush()
        self._transport.write(data)

    def close(self) -> None:
        """Write what is to be written, and close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write now what is to be written; a connection that was cut off meanwhile takes nothing."""
        if self._written:
            written, self._written, self._size_bytes = self._written, [], 0
            if self._transport.is_closing():
                return
            self._transport.write(written[0] if len(written) == 1 else b"".join(written))
