"""A connection that answers usual inferences itself, without a task and an application between.

What has arrived is either one whole request that `heads` calls usual, and `express` sees to it, or it goes on to
uvicorn as it came. While an answer is being made nothing more is read. A body that comes a moment after its head is
waited for a moment. An answer that takes more than one write (outputs from the store, compression) is made the usual
way, of the same request: the application finds its result in `answered`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from services.gateway import heads
from services.gateway.turnstile import Turnstile
from shared import logs

if TYPE_CHECKING:
    import asyncio

    from services.gateway.connection import Answered
    from services.gateway.express import Express, Inference

_MOMENT_S: Final = 0.05
_MOST_PIECES: Final = 4
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


class ExpressConnection(Turnstile):
    """One connection."""

    express: Express | None = None
    """Given by a subclass: uvicorn makes the connections."""
    answered: Answered | None = None
    """What the application has only to send."""
    _inference: Inference | None = None
    """What is being answered here."""
    _request = b""
    """Its bytes; or the beginning of a request whose body has not come in whole."""
    _pieces = 0
    _waiting: asyncio.TimerHandle | None = None
    """Until that body is given up."""
    _stalling: asyncio.TimerHandle | None = None
    """Until it is looked whether a client takes anything of its answer."""
    _untaken_bytes = 0
    """Of which there were so many the last time."""
    _early = b""
    """What came behind the request that is being answered."""
    _defaults: list[tuple[bytes, bytes]] | None = None
    _lines = b""
    """The same, as they are sent."""
    _closes = False
    """Whether the answer is the last one on this connection."""

    def rest_of(self, data: bytes) -> bytes:
        """What has arrived and is uvicorn's to read; empty if it is seen to here."""
        if self._inference is not None:
            self._early += data
            self.flow.pause_reading()
            return b""
        if self._waiting is None:
            self._pieces = 0
        else:
            data = self._arrived_so_far() + data
        if self.express is None or self._arriving or not self._is_quiet():
            return data
        end = data.find(heads.END, 0, heads.MOST_HEAD_BYTES) + len(heads.END)
        head = heads.usual(data[:end]) if end >= len(heads.END) else None
        if head is None or len(data) > end + head.body_bytes:
            return data
        if len(data) < end + head.body_bytes:
            return self._await_more(data)
        body = data[end:]
        if self.refuse_whole(head.path, body) or self._begin(self.express, head, data, body):
            return b""
        return data

    def _is_quiet(self) -> bool:
        """Whether nothing else is under way on this connection, and it is one of those that are let in."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
            and not self.is_crowded
        )

    def _begin(self, express: Express, head: heads.Head, data: bytes, body: bytes) -> bool:
        self._request = data
        self._inference = express.inference(self, head)
        if not self._inference.begin(body):
            self._inference, self._request = None, b""
            return False
        return True

    def begun(self) -> None:
        """The inference is let in, or refused for a reason of its own."""
        self.send_refusal()
        self._refusals = 0

    # ------------------------------------------------------------------ a body that comes in pieces

    def _await_more(self, data: bytes) -> bytes:
        self._pieces += 1
        if self._pieces >= _MOST_PIECES:
            return data
        self._request = data
        self._waiting = self.loop.call_later(_MOMENT_S, self._usual_way)
        return b""

    def _arrived_so_far(self) -> bytes:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        data, self._request = self._request, b""
        return data

    def _usual_way(self) -> None:
        """The moment is over: uvicorn reads what is there, and waits for the rest."""
        self.read_usually(self._arrived_so_far())

    def read_usually(self, data: bytes) -> None:
        """Have uvicorn read this."""
        super().data_received(data)

    # ------------------------------------------------------------------ answers

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """Send the whole answer; `headers` are lines that end with their line breaks."""
        self._inference, self._request = None, b""
        if self.transport.is_closing():
            return
        closes = b"connection: close\r\n" if self._closes else b""
        length = b"content-length: %d\r\n\r\n" % len(body)
        self.writer.write_whole(b"".join([_STATUS_LINES[status], self._default_lines(), headers, closes, length, body]))
        self.server_state.total_requests += 1
        if self._closes:
            self.transport.close()
            return
        self.be_quiet()
        if self._early:
            self.loop.call_soon(self._go_on)

    def _default_lines(self) -> bytes:
        """The headers of every answer: the date, anew every second."""
        headers = self.server_state.default_headers
        if self._defaults is not headers:
            self._defaults, self._lines = headers, b"".join([b"%s: %s\r\n" % header for header in headers])
        return self._lines

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being made, or a request has begun to arrive."""
        return self._inference is not None or self._waiting is not None or super().is_busy

    def hand_over(self, answered: Answered) -> None:
        """Have the application send this answer."""
        data, self._request, self._inference = self._request, b"", None
        if self.transport.is_closing():
            return
        self.answered = answered
        self.read_usually(data)
        if self._early:
            self._go_on()
        if self._closes:
            super().shutdown()

    def on_response_complete(self) -> None:
        """The application has sent its answer."""
        self.answered = None
        super().on_response_complete()

    def _go_on(self) -> None:
        early, self._early = self._early, b""
        self.flow.resume_reading()
        if not self.transport.is_closing():
            self.data_received(early)

    def pause_writing(self) -> None:
        """The client takes nothing of an answer: not for ever."""
        super().pause_writing()
        if self.express is not None and self._stalling is None:
            self._look_again(self.express.stall_timeout_s)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._stalling is not None:
            self._stalling.cancel()
            self._stalling = None

    def _look_again(self, after_s: float) -> None:
        self._untaken_bytes = self.transport.get_write_buffer_size()
        self._stalling = self.loop.call_later(after_s, self._look, after_s)

    def _look(self, after_s: float) -> None:
        """Cut the client off if it has taken nothing since the last look."""
        self._stalling = None
        if self.transport.get_write_buffer_size() < self._untaken_bytes:
            self._look_again(after_s)
        else:
            logs.get().warning("a client took nothing of its answer", bytes=self._untaken_bytes)
            self.transport.abort()

    @property
    def is_crowded(self) -> bool:
        """As the turnstile has it; but what is answered already is sent all the same."""
        return self.answered is None and super().is_crowded

    def _may_be_refused(self) -> bool:
        return self.answered is None and super()._may_be_refused()

    # ------------------------------------------------------------------ the end

    def shutdown(self) -> None:
        """Close when what is being answered is answered, and what has begun to arrive."""
        self.send_refusal()
        if self._waiting is not None:
            self._usual_way()
        if self._inference is not None:
            self._closes = True
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there to be answered."""
        self._arrived_so_far()
        if self._stalling is not None:
            self._stalling.cancel()
        super().connection_lost(exc)
        if self._inference is not None:
            self._inference.lost()
            self._inference = None
