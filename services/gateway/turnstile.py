"""Refusals at the door: an inference for a model that is full is answered before anything is made of it.

Under overload most requests are refused, on the same event loop that serves the others. Through the whole application a
refusal costs a task, a dozen objects and a line of log; here it costs the parsing of its head and one write, and those
who were let in keep the processor. Callers who ask again at once, against `Retry-After`, would still take all of it,
the more of them are refused the more: so after a few refusals in quick succession a connection gets the next ones
some milliseconds later each. What is refused here is only counted: the log tells the sums.

It is decided when the head has come, in bytes. A small body (`SMALL_BYTES`) is read on, held, since it may name a
priority, which has places of its own: if it does, or if anything else is unusual (pipelining, a client that takes
nothing, a body of unknown or great length), the request goes the usual way, where `admission` says what there is to
say. So a key is not asked for: who has none learns that the model is busy, and nothing more. Of a request that came in
one piece, as nearly all do, not even the head is parsed if it is known (`refuse_whole`, asked by
`express_connection`).
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Final, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway import answers
from services.gateway.heads import SMALL_BYTES
from services.gateway.one_write import OneWrite
from shared.errors import Overloaded

if TYPE_CHECKING:
    import asyncio

    from services.gateway.deadlines import Deadlines

_AT_ONCE: Final = 2
_STEP_S: Final = 0.005
_LONGEST_S: Final = 0.01
_PATIENT_S: Final = 0.1
"""Whoever asks again after so long does not ask at once."""
_PRIORITY: Final = b"priority"
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
    deadlines: Deadlines
    """Likewise."""
    most_connections = sys.maxsize
    """Given by a subclass too: a request on one more is refused, and the connection closed."""
    _refused: bytes | None = None
    """The response to the request that is arriving, unless its body says otherwise."""
    _held = b""
    _refusals = 0
    """In a row, on this connection."""
    _due: bytes | None = None
    """A refusal that is to be sent a little later."""
    _slot = 0
    """When, as `deadlines` counts."""
    _quiet_since_s = -math.inf
    """When an answer was sent here that uvicorn knows nothing of, by the event loop's clock."""
    _arriving = False
    """Whether the parser is in the middle of a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A client has come."""
        self.writer = OneWrite(transport, self.loop)
        super().connection_made(self.writer)  # type: ignore[arg-type]  # all that uvicorn uses

    def refuse_whole(self, path: bytes, body: bytes) -> bool:
        """Refuse a whole and usual request, if it is for a model without a place; nothing else may be under way."""
        refused = None if self.door is None else self.door.refusal(path)
        if refused is None or _PRIORITY in body:
            return False
        self.send_refusal()
        self._turn_away(refused, path)
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
        if self.is_crowded:
            self.transport.write(_CROWDED)
            self.transport.close()
            return
        if self._may_be_refused() and self._is_plain():
            self._refused = self.door.refusal(self.url) if self.door is not None else None
        if self._refused is None:
            self._refusals = 0
            super().on_headers_complete()

    @property
    def is_crowded(self) -> bool:
        """Whether there are more connections than are served."""
        return len(self.connections) > self.most_connections

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
        if self.loop.time() - self._quiet_since_s > _PATIENT_S:
            self._refusals = 0
        self._refusals += 1
        if self._refusals <= _AT_ONCE:
            self.send_refusal()
        else:
            delay_s = min(_STEP_S * (self._refusals - _AT_ONCE), _LONGEST_S)
            self._slot = self.deadlines.add(self.loop.time() + delay_s, self, self.send_refusal)

    def send_refusal(self) -> None:
        """Send the refusal that is due: its time has come, or the next request."""
        if self._due is None:
            return
        response, self._due = self._due, None
        self.deadlines.discard(self._slot, self)
        if self.transport.is_closing():
            return
        self.writer.write_whole(response)
        self.be_quiet()

    # ------------------------------------------------------------------ between requests

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered, so that the connection is not quiet at all."""
        return self.cycle is not None and not self.cycle.response_complete

    def be_quiet(self) -> None:
        """An answer was sent past uvicorn: wait for the next request, but not for ever.

        One timer sees to many answers: when it goes off it looks how long the connection has been quiet.
        """
        self._quiet_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._await_next(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close if nothing came for so long."""
        left_s = self._quiet_since_s + self.timeout_keep_alive - self.loop.time()
        if self.transport.is_closing():
            return
        if self.is_busy:
            self._await_next(self.timeout_keep_alive)
        elif left_s > 0:
            self._await_next(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _await_next(self, time_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(time_s, self.timeout_keep_alive_handler)
