"""Reading request bodies: capped before anything is parsed, and never waiting for ever on a client.

Below Starlette's `Request`, because that neither caps a body nor bounds the wait for its next piece. `chunks` gives a
body as it was sent, `inflated` as it was before it was compressed (`encodings`), `read` all of that at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING

from services.gateway import encodings
from shared.errors import InvalidInput, Stalled, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.types import Message, Receive

_SHA256_BYTES = 32


class ClientGone(Exception):
    """The client closed the connection. A normal case: there is nobody to answer."""


async def chunks(
    receive: Receive, headers: Mapping[str, str], *, limit_bytes: int, stall_timeout_s: float | None
) -> AsyncIterator[bytes]:
    """The pieces of the body as they arrive. Without a `stall_timeout_s`, all of it must be there already.

    Raises:
        TooLarge: more than `limit_bytes` are announced or arrive.
        Stalled: nothing arrived for `stall_timeout_s`.
        ClientGone: the connection closed before the end.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise TooLarge(f"the body has {announced} bytes, above the limit of {limit_bytes}")
    size_bytes, more = 0, True
    while more:
        try:
            message = await (receive() if stall_timeout_s is None else _within(stall_timeout_s, receive))
        except TimeoutError as err:
            raise Stalled(f"the body stalled for {stall_timeout_s:g} s after {size_bytes} bytes") from err
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise TooLarge(f"the body is above the limit of {limit_bytes} bytes")
        if chunk:
            yield chunk


async def _within(seconds_s: float, receive: Receive) -> Message:
    async with asyncio.timeout(seconds_s):
        return await receive()


async def inflated(
    receive: Receive, headers: Mapping[str, str], *, limit_bytes: int, stall_timeout_s: float | None
) -> AsyncIterator[bytes]:
    """The pieces of the body without its `Content-Encoding`.

    Raises:
        TooLarge: more than `limit_bytes` are announced, arrive, or come of what arrives; then no more is inflated.
        Stalled, ClientGone: as `chunks`.
        UnsupportedEncoding: it is compressed in a way that is not read here.
        InvalidInput: it is not what its encoding says.
    """
    arriving = chunks(receive, headers, limit_bytes=limit_bytes, stall_timeout_s=stall_timeout_s)
    encoding = encodings.of_body(headers)
    if encoding is None:
        async for chunk in arriving:
            yield chunk
        return
    inflater = encodings.Inflater(encoding)
    size_bytes = 0
    async for chunk in arriving:
        async for piece in inflater.feed(chunk):
            size_bytes += len(piece)
            if size_bytes > limit_bytes:
                raise TooLarge(f"the body is above the limit of {limit_bytes} bytes when it is inflated")
            yield piece
    inflater.finish()


async def read(
    receive: Receive,
    headers: Mapping[str, str],
    *,
    limit_bytes: int,
    stall_timeout_s: float | None,
    take: Callable[[int], None] = lambda _: None,
) -> bytes:
    """The whole body, inflated; `take` is told of each piece's size before it is kept.

    Raises:
        TooLarge, Stalled, ClientGone, UnsupportedEncoding, InvalidInput: as `inflated`. What `take` raises passes
        through.
    """
    pieces: list[bytes] = []
    async for chunk in inflated(receive, headers, limit_bytes=limit_bytes, stall_timeout_s=stall_timeout_s):
        take(len(chunk))
        pieces.append(chunk)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def content_sha256(headers: Mapping[str, str]) -> str | None:
    """The SHA-256, in hex, that a `Content-Digest` promises (RFC 9530: `sha-256=:BASE64:`); None if there is none.

    Raises:
        InvalidInput: it promises something else only, which would go unchecked, or is malformed.
    """
    promised = headers.get("content-digest")
    if promised is None:
        return None
    members = dict(member.strip().partition("=")[::2] for member in promised.split(","))
    value = members.get("sha-256", "")
    try:
        digest = base64.b64decode(value.removeprefix(":").removesuffix(":"), validate=True)
    except binascii.Error:
        digest = b""
    if len(value) < 2 or value[0] + value[-1] != "::" or len(digest) != _SHA256_BYTES:  # noqa: PLR2004 - two colons
        raise InvalidInput(f"Content-Digest {promised[:100]!r} is not of the form sha-256=:BASE64:")
    return digest.hex()
