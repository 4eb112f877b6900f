"""Bodies on their way to the artifact store: how many at a time, how long, and how much."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from services.gateway import bodies, encodings
from shared.errors import Stalled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
