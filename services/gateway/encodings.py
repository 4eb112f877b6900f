"""Bodies compressed on the way: gzip and deflate, both ways, as HTTP has them (RFC 9110, section 8.4).

In: `Inflater` takes the pieces of a body as they arrive and gives them back inflated, a bounded step at a time, so that
a bomb is refused at the limit and not after it. `deflate` is a zlib stream, and what some clients send instead, a bare
one. Out: `encode` compresses an answer if the caller asks for it and it is worth it; `Inference-Header-Content-Length`
stays the length of the JSON header as it was before that, which is how Triton and its clients have it.

Fast and light (level 1): who wants the fewest bytes on the wire pays for them in latency. Whatever is long runs on a
thread, where zlib lets go of the interpreter's lock. Answers that are streamed from the store are not compressed, and
neither are errors, which clients read without looking at their encoding.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Final

from shared.errors import InvalidInput, UnsupportedEncoding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.responses import Response

READ: Final = "gzip, deflate"
"""What may be sent here, as an `Accept-Encoding` says it."""
_LEVEL: Final = 1
_WORTH_BYTES: Final = 4096
"""A shorter answer is a packet or three either way."""
_INLINE_BYTES: Final = 64 * 1024
"""So much is inflated or compressed on the event loop: less than a millisecond."""
_STEP_BYTES: Final = 1024 * 1024
_AUTO_WBITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_BARE_WBITS: Final = -15
_DEFLATE_METHOD: Final = 8
_MOST_CHOICES: Final = 20
_OK: Final = 200


def of_body(headers: Mapping[str, str]) -> str | None:
    """How a request's body is encoded; None if it is not.

    Raises:
        UnsupportedEncoding: in a way that is not read here, or in several.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return None
    if encoding not in _AUTO_WBITS:
        raise UnsupportedEncoding(f"content-encoding {encoding[:40]!r} is not read here: send {READ}, or neither")
    return encoding


def refuse(headers: Mapping[str, str]) -> None:
    """Return if a body is as it is meant: files are stored, and their digests promised, byte by byte as they come.

    Raises:
        UnsupportedEncoding: it is compressed.
    """
    if headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
        raise UnsupportedEncoding("files are taken as they are: send them without a content-encoding")


class Inflater:
    """One compressed body."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream: zlib._Decompress | None = None
        self._head = b""
        self._inflated_bytes = 0

    async def feed(self, piece: bytes) -> AsyncIterator[bytes]:
        """What comes of a piece, in steps. Who stops asking stops the inflating.

        Raises:
            InvalidInput: it is not what it says it is, or goes on behind its end.
        """
        rest = self._head + piece
        if self._stream is None:
            if len(rest) < 2:  # noqa: PLR2004 - the two bytes that tell a zlib stream from a bare one
                self._head = rest
                return
            self._head, self._stream = b"", zlib.decompressobj(self._wbits(rest))
        while rest:
            if self._stream.eof:
                raise InvalidInput(f"bytes follow the end of the {self._encoding} body")
            inflated = await self._step(self._stream, rest)
            rest = self._stream.unconsumed_tail or self._stream.unused_data
            if inflated:
                yield inflated

    def finish(self) -> None:
        """The body is over.

        Raises:
            InvalidInput: it was not, for what it says it is.
        """
        if self._stream is None or not self._stream.eof:
            raise InvalidInput(f"the body ends before the end of its {self._encoding} stream")

    async def _step(self, stream: zlib._Decompress, data: bytes) -> bytes:
        try:
            if self._inflated_bytes < _INLINE_BYTES:
                inflated = stream.decompress(data, _INLINE_BYTES)
            else:
                inflated = await asyncio.to_thread(stream.decompress, data, _STEP_BYTES)
        except zlib.error as err:
            raise InvalidInput(f"the body is not {self._encoding}: {err}") from err
        self._inflated_bytes += len(inflated)
        return inflated

    def _wbits(self, head: bytes) -> int:
        wbits = _AUTO_WBITS[self._encoding]
        is_zlib = head[0] & 15 == _DEFLATE_METHOD and (head[0] << 8 | head[1]) % 31 == 0  # RFC 1950, section 2.2
        return _BARE_WBITS if self._encoding == "deflate" and not is_zlib else wbits


def asked_for(accept: str) -> tuple[str | None, bool]:
    """The encoding that an `Accept-Encoding` wants most of those made here, and whether it takes nothing else.

    What is not named is not wanted, but for `*`; without a preference, gzip. "Nothing else" is `identity` at quality 0.
    """
    wanted: dict[str, float] = {}
    for choice in accept.lower().split(",")[:_MOST_CHOICES]:
        name, *parameters = (part.strip() for part in choice.split(";"))
        if name:
            wanted[name] = _quality(parameters)
    others = wanted.get("*", 0.0)
    quality = {name: wanted.get(name, others) for name in ("gzip", "deflate")}
    best = max(quality, key=quality.__getitem__)
    identity = wanted.get("identity", others if "*" in wanted else 1.0)
    if quality[best] <= 0 or ("identity" in wanted and identity > quality[best]):
        return None, False
    return best, identity == 0


def _quality(parameters: list[str]) -> float:
    """The weight of a choice, 0 to 1; a malformed one counts as not wanted."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0 <= quality <= 1 else 0.0
    return 1.0


def may_encode(body: bytes, accept: str | None) -> bool:
    """Whether `encode` might change an answer with this body."""
    if not accept:
        return False
    return len(body) >= _WORTH_BYTES or "*" in accept or "identity" in accept.lower()


async def encode(response: Response, accept: str | None) -> Response:
    """The answer, compressed if the caller's `Accept-Encoding` asks for it, and it is worth it or must be."""
    if not accept or response.status_code != _OK or "content-length" not in response.headers:
        return response
    encoding, only = asked_for(accept)
    body = bytes(response.body)
    if not body or encoding is None or (len(body) < _WORTH_BYTES and not only):
        return response
    wbits = _AUTO_WBITS[encoding]
    if len(body) > _INLINE_BYTES:
        smaller = await asyncio.to_thread(zlib.compress, body, _LEVEL, wbits)
    else:
        smaller = zlib.compress(body, _LEVEL, wbits)
    response.headers["vary"] = "accept-encoding"
    if len(smaller) < len(body) or only:
        response.body = smaller
        response.headers["content-length"] = str(len(smaller))
        response.headers["content-encoding"] = encoding
    return response
