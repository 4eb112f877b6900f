"""What a request may ask of the connection it came by, beyond what ASGI has for it.

ASGI tells that a client has gone only to who awaits `receive`, a task for every request that waits; it does not tell
whether sending would wait. The server's protocol knows both, and puts a `Connection` into the scope's extensions. Under
a server that does not, `of` gives one that asks ASGI.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Receive, Scope

    from shared.oip import InferenceRequest
    from shared.results import Result

EXTENSION: Final = "aiaas.connection"


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that `express` has seen to, with its result: there is only the answer to be sent."""

    id: str
    request: InferenceRequest
    """Without its inputs."""
    result: Result
    tenant: str | None
    trace_id: str | None
    began_s: float
    """When it came, by `time.perf_counter`."""


class Connection(Protocol):
    """One connection, while one request is answered on it."""

    @property
    def has_body(self) -> bool:
        """Whether all of the request's body has arrived: to receive it is not to wait."""

    @property
    def takes(self) -> bool:
        """Whether what is sent now is taken at once."""

    @property
    def answered(self) -> Answered | None:
        """What has only to be sent, if this is such a request."""

    def when_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when the client closes the connection; returns what undoes that."""


def of(scope: Scope) -> Connection | None:
    """The connection of a request, if its server tells."""
    return cast("Connection | None", scope.get("extensions", {}).get(EXTENSION))


@contextmanager
def watched(scope: Scope, receive: Receive, gone: Callable[[], None]) -> Iterator[None]:
    """Call `gone` if the client closes its connection meanwhile. Its body must have been read."""
    connection = of(scope)
    undo = connection.when_lost(gone) if connection is not None else _asked(receive, gone)
    try:
        yield
    finally:
        undo()


def _asked(receive: Receive, gone: Callable[[], None]) -> Callable[[], object]:
    """The same of a server that only has ASGI."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone()

    return asyncio.create_task(watch()).cancel
