"""Refusals at the door: an inference for a model that is full is answered before anything is made of it.

Under overload most requests are refused, on the same event loop that serves the others. Through the whole application a
refusal costs a task, a dozen objects and a line of log; here it costs the parsing of its head and one write, and those
who were let in keep the processor. Callers who ask again at once, against `Retry-After`, would still take all of it,
the more of them are refused the more: so after a few refusals in a row a connection gets the next ones some
milliseconds later each. What is refused here is only counted: the log tells the sums.

It is decided when the head has come, in bytes. A small body (`SMALL_BYTES`) is read on, held, since it may name a
priority, which has places of its own: if it does, or if anything else is unusual (pipelining, a client that takes
nothing, a body of unknown or great length), the request goes the usual way, where `admission` says what there is to
say. So a key is not asked for: who has none learns that the model is busy, and nothing more. A request that came in one
piece, as nearly all do, is not even parsed (`refuse_whole`): whether it is what it seems makes no difference to a
refusal.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway import answers
from services.gateway.heads import SMALL_BYTES
from shared.errors import Overloaded

if TYPE_CHECKING:
    import asyncio

_AT_ONCE: Final = 2
_STEP_S: Final = 0.005
_LONGEST_S: Final = 0.02
_PRIORITY: Final = b"priority"
_HEAD_END: Final = b"\r\n\r\n"
_INFER: Final = re.compile(rb"POST (/v2/models/[A-Za-z0-9-]{1,100}/infer) HTTP/1\.1\r\n")
_LENGTHS: Final = re.compile(rb"\r\ncontent-length: ?([0-9]{1,6})(?=\r\n)")
_UNUSUAL: Final = re.compile(rb"\r\n(transfer-encoding|expect|connection|upgrade)")
_CROWDED: Final = answers.raw(
    answers.of_error(Overloaded("this gateway has all the connections that it takes")), b"connection: close\r\n"
)


class Door(Protocol):
    """Who knows whether there is a place."""

    def refusal(self, path: bytes) -> bytes | None:
        """The whole response that refuses an inference at this path, with a keep-alive; None lets it in."""

    def turned_away(self, path: bytes) -> None:
        """That was sent."""


class Turnstile(HttpToolsProtocol):
    """One connection."""

    door: Door | None = None
    """Given by a subclass: uvicorn makes the connections."""
    most_connections = sys.maxsize
    """Given by a subclass too: a request on one more is refused, and the connection closed."""
    _refused: bytes | None = None
    """The response to the request that is arriving, unless its body says otherwise."""
    _held = b""
    _refusals = 0
    """In a row, on this connection."""
    _due: bytes | None = None
    """A refusal that is to be sent a little later."""
    _sending: asyncio.TimerHandle | None = None
    _arriving = False
    """Whether the parser is in the middle of a request."""

    def refuse_whole(self, data: bytes) -> bool:
        """Refuse what has arrived, if it is one whole and usual request for a model without a place."""
        if self.door is None or self._arriving or (self.cycle is not None and not self.cycle.response_complete):
            return False
        found = _INFER.match(data)
        refused = self.door.refusal(found[1]) if found is not None else None
        if found is None or refused is None or self.flow.write_paused or self.transport.is_closing():
            return False
        if len(self.connections) > self.most_connections or not _is_usual(data):
            return False
        self.send_refusal()
        self._turn_away(refused, found[1])
        return True

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._arriving = True
        super().on_message_begin()

    @property
    def is_holding(self) -> bool:
        """Whether a body is awaited here, and nobody else waits for it."""
        return self._refused is not None

    def on_headers_complete(self) -> None:
        """Let it in, or wait for its body to say why it should be."""
        self.send_refusal()
        if len(self.connections) > self.most_connections:
            self.transport.write(_CROWDED)
            self.transport.close()
            return
        if self._may_be_refused() and self._is_plain():
            self._refused = self.door.refusal(self.url) if self.door is not None else None
        if self._refused is None:
            self._refusals = 0
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hold the body of whoever waits."""
        if self._refused is not None:
            self._held += body
        elif not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All is there: let it in after all, or send the refusal."""
        self._arriving = False
        refused, held = self._refused, self._held
        if refused is not None:
            self._refused, self._held = None, b""
            if _PRIORITY not in held:
                self._turn_away(refused, self.url)
                return
            super().on_headers_complete()
            if held:
                super().on_body(held)
        if self.cycle is not None:
            super().on_message_complete()

    def _is_plain(self) -> bool:
        """Whether there is nothing else to see to on this connection, and the body is small."""
        if (self.cycle is not None and not self.cycle.response_complete) or self.flow.write_paused:
            return False
        if self.expect_100_continue or not self.parser.should_keep_alive() or self.parser.get_method() != b"POST":
            return False
        length = dict(self.headers).get(b"content-length", b"")
        return length.isdigit() and int(length[:20]) <= SMALL_BYTES

    def _may_be_refused(self) -> bool:
        return self.door is not None and self.url.endswith(b"/infer")

    def _turn_away(self, response: bytes, path: bytes) -> None:
        if self.door is not None:
            self.door.turned_away(path)
        self.server_state.total_requests += 1
        self._due = response
        self._refusals += 1
        if self._refusals <= _AT_ONCE:
            self.send_refusal()
        else:
            delay_s = min(_STEP_S * (self._refusals - _AT_ONCE), _LONGEST_S)
            self._sending = self.loop.call_later(delay_s, self.send_refusal)

    def send_refusal(self) -> None:
        """Send the refusal that is due: its time has come, or the next request."""
        if self._due is None:
            return
        response, self._due = self._due, None
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        if self.transport.is_closing():
            return
        self.transport.write(response)
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)


def _is_usual(data: bytes) -> bool:
    """Whether bytes are one whole request with a small body of known length, which names no priority."""
    end = data.find(_HEAD_END)
    head = data[: end + 2].lower()
    lengths = _LENGTHS.findall(head)
    return (
        end > 0
        and len(lengths) == 1
        and int(lengths[0]) == len(data) - end - len(_HEAD_END) <= SMALL_BYTES
        and _UNUSUAL.search(head) is None
        and data.find(_PRIORITY, end) < 0
    )
