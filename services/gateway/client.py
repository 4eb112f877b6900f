"""Who asked, for as long as the answer takes: what its request says, how to read it, and whether it is still there."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.gateway import connection
from services.gateway.bodies import ClientGone

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from starlette.types import Receive, Scope

    from services.gateway.connection import Answered
    from shared.results import Result


class Client:
    """One request over HTTP. `headers` are by lower-case name; those of one name are one list, as HTTP has it."""

    __slots__ = ("_scope", "headers", "receive")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self.receive = receive
        self.headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            known = self.headers.get(name)
            self.headers[name] = value if known is None else f"{known}, {value}"  # RFC 9110, section 5.3

    @property
    def has_sent_all(self) -> bool:
        """Whether the whole body is here: reading it will not wait."""
        known = connection.of(self._scope)
        return known is not None and known.has_body

    @property
    def answered(self) -> Answered | None:
        """The result, if the request had it before it came to the application."""
        known = connection.of(self._scope)
        return None if known is None else known.answered

    @contextmanager
    def watched(self, answer: asyncio.Future[Result]) -> Iterator[None]:
        """End a wait with `ClientGone` when the client hangs up. Its body must have been read."""
        with connection.watched(self._scope, self.receive, lambda: end(answer, ClientGone())):
            yield


def end(answer: asyncio.Future[Result], error: Exception) -> None:
    """End a wait, if it has not ended."""
    if not answer.done():
        answer.set_exception(error)
