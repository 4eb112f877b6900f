"""Bodies on their way to the artifact store: how many at a time, how long, how much, and what the log says of each."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from services.gateway import bodies, encodings
from services.gateway.answers import CLIENT_GONE, of_error
from services.gateway.bodies import ClientGone
from shared import logs
from shared.errors import AiaasError, Stalled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from starlette.requests import Request

    from services.gateway.gateway import Gateway


@asynccontextmanager
async def arriving(gateway: Gateway, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
    """The pieces of the body, to be stored in here: in one of the places for uploads, within the time for one.

    Raises:
        Overloaded: all places are taken.
        UnsupportedEncoding: the body is compressed.
        TooLarge, Stalled, ClientGone: as `bodies.chunks`, and `Stalled` when the time is over.
    """
    encodings.refuse(request.headers)
    settings = gateway.settings
    with gateway.admission.upload():
        try:
            async with asyncio.timeout(settings.upload_timeout_s):
                yield bodies.chunks(
                    request.receive,
                    request.headers,
                    limit_bytes=settings.max_upload_bytes,
                    stall_timeout_s=settings.stall_timeout_s,
                )
        except TimeoutError as err:
            raise Stalled(f"the upload took longer than {settings.upload_timeout_s:g} s") from err


async def answered(what: str, storing: Awaitable[tuple[Response, dict[str, Any]]], **about: Any) -> Response:
    """What `storing` answers, or its failure as an answer, and one log line `what` of it.

    `storing` also returns what it has to add to `about` in that line.
    """
    started_s = time.perf_counter()
    try:
        response, stored = await storing
    except AiaasError as err:
        response, stored = of_error(err), {"code": err.code}
    except ClientGone:
        response, stored = Response(status_code=CLIENT_GONE), {"code": "client_gone"}
    duration_ms = round((time.perf_counter() - started_s) * 1000, 3)
    logs.get().info(what, status=response.status_code, duration_ms=duration_ms, **about, **stored)
    return response
