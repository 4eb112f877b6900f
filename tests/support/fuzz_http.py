"""The requests of `fuzz` by HTTP, as bytes on a connection: framed, encoded and headed in every wrong way as well.

`Connection` is a client that knows so little of HTTP that it can send anything; answers have to be right HTTP.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .fuzz import JSON, Ask

if TYPE_CHECKING:
    import random

    from .fuzz import Fuzz

_ANSWER_S = 40.0
"""Longer than the gateway waits for a client that stalls."""
_TINY = (b'"timeout": 1', b'"timeout": 1500', b'"timeout": 20000')
_ODD_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"prefer", b"respond-async"),
    (b"prefer", b"respond-async, wait=0"),
    (b"prefer", b"wait=99999999999999999999;;;=,"),
    (b"prefer", b"\xff\xfe"),
    (b"idempotency-key", b'"the same"'),
    (b"idempotency-key", b"\xe9" * 300),
    (b"idempotency-key", b""),
    (b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"),
    (b"traceparent", b"\xff" * 55),
    (b"accept-encoding", b"gzip;q=nan, deflate;q=-1, *;q=99, ,,,"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"authorization", b"Bearer " + b"x" * 3000),
    (b"authorization", b"\x80"),
    (b"content-digest", b"sha-256=:x:"),
    (b"expect", b"100-continue"),
    (b"x-request-id", b"mine"),
    (b"content-encoding", b"br"),
    (b"content-encoding", b"gzip, gzip"),
    (b"content-type", b"application/json"),
    (b"a" * 200, b"b" * 4000),
    (b"connection", b"close"),
    (b"upgrade", b"h2c"),
    (b"te", b"trailers"),
    (b"cookie", b"\xf0\x9f\xa6\x84"),
)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request on the wire.

    `broken` says that the framing is wrong: the connection ends with it, and it may end without an answer. `hasty` says
    that its deadline may pass.
    """

    ask: Ask
    raw: bytes
    broken: bool = False
    hasty: bool = False

    @property
    def may_expire(self) -> bool:
        """Whether its deadline may pass: it is near, or what was changed in the request may have made it so."""
        return self.hasty or b"timeout" in (self.ask.content or b"")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `status` None if the connection ended."""

    status: int | None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def sent(fuzz: Fuzz, rng: random.Random) -> Sent:
    """The next request, dressed for HTTP."""
    ask = fuzz.ask()
    body = ask.content or b""
    hasty = ask.content_type == JSON and ask.expected is not None and rng.random() < 0.05
    if hasty:
        body = body.replace(b'{"inputs"', b'{"parameters": {%s}, "inputs"' % rng.choice(_TINY), 1)
    headers = [(b"host", b"x")]
    if ask.content_type is not None:
        headers.append((b"content-type", _latin(ask.content_type)))
    if ask.header_length is not None:
        headers.append((b"inference-header-content-length", _latin(ask.header_length)))
    odd = [rng.choice(_ODD_HEADERS)] if rng.random() < 0.15 else []
    kind = rng.randrange(24)
    if kind < 4:
        body, more = _compressed(rng, body, kind)
        headers += more
        ask = _unless(ask, kind <= 1)
    raw, broken = _framed(rng, ask.model, [*headers, *odd], body)
    names = {name for name, _ in odd}
    ask = _unless(ask, not broken and names <= {b"accept-encoding", b"x-request-id", b"cookie", b"te", b"connection"})
    ask = _unless(ask, not hasty)  # it may be answered in time, or not
    return Sent(ask, raw, broken, hasty)


def _unless(ask: Ask, right: bool) -> Ask:
    """The request, with its right answer only if it is still a right one."""
    return ask if right else Ask(ask.model, ask.content, ask.content_type, ask.header_length)


def _latin(text: str) -> bytes:
    return text.encode("utf-8")


def _compressed(rng: random.Random, body: bytes, kind: int) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    if kind == 0:
        return gzip.compress(body, 1), [(b"content-encoding", b"gzip")]
    if kind == 1:
        return zlib.compress(body, 1), [(b"content-encoding", b"deflate")]
    if kind == 2:
        bomb = gzip.compress(bytes(6_000_000), 1)
        whole = gzip.compress(body, 1)
        return rng.choice((bomb, whole[:-5], whole + b"more", whole[:20])), [(b"content-encoding", b"gzip")]
    return body, [(b"content-encoding", rng.choice((b"gzip", b"deflate", b"br", b"x", b"identity, gzip", b"\xff")))]


def _framed(rng: random.Random, model: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[bytes, bool]:
    """A request on the wire, and whether its framing, or its path, is wrong."""
    path = b"/v2/models/" + model.encode() + b"/infer"
    match rng.randrange(40):
        case 0 | 1 | 2:
            return _head(path, [*headers, (b"transfer-encoding", b"chunked")]) + _chunked(rng, body), False
        case 3:
            return _head(_odd_path(rng, model.encode()), [*headers, _length(body)]) + body, True
        case 4 | 5 | 6 | 7 | 8:
            return _badly_framed(rng, path, headers, body), True
        case 9 | 10:
            raw = _head(path, [*headers, _length(body)]) + body
            at = rng.randrange(len(raw) - len(body))
            return rng.choice((raw[: rng.randrange(len(raw))], raw[:at] + rng.randbytes(2) + raw[at:])), True
        case _:
            return _head(path, [*headers, _length(body)]) + body, False


def _badly_framed(rng: random.Random, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    match rng.randrange(6):
        case 0:  # a body that ends early
            return _head(path, [*headers, _length(body)]) + body[: rng.randrange(len(body) + 1)]
        case 1:  # one that goes on
            return _head(path, [*headers, _length(body[: len(body) // 2])]) + body
        case 2:
            length = rng.choice((b"-1", b"x", b"9" * 18, b"9" * 40, b"", b"0x10", b"1, 1", b"+5"))
            return _head(path, [*headers, (b"content-length", length)]) + body
        case 3:
            chunks = rng.choice((b"zz\r\n", b"5\r\nab", b"-1\r\n", b"f" * 40 + b"\r\n", b"1;" + b"x" * 9000 + b"\r\na"))
            return _head(path, [*headers, (b"transfer-encoding", b"chunked")]) + chunks
        case 4:  # both, which is how requests are smuggled
            return _head(path, [*headers, _length(body), (b"transfer-encoding", b"chunked")]) + body
        case _:  # no length at all: there is no body then
            return _head(path, headers)


def _odd_path(rng: random.Random, model: bytes) -> bytes:
    version = rng.choice((b"", b"/versions/1", b"/versions/77", b"/versions/x", b"/versions/" + b"9" * 5000))
    return b"/v2/models/" + rng.choice((model, b"%00", b"..", b"%2e%2e%2f", b"%ff", b"m" * 3000)) + version + b"/infer"


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()


def _head(path: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"POST %s HTTP/1.1\r\n" % path + b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n"


def _chunked(rng: random.Random, body: bytes) -> bytes:
    pieces, rest = [], body
    while rest:
        size = rng.choice((1, 10, 1000, 65536))
        piece, rest = rest[:size], rest[size:]
        pieces.append(b"%x\r\n%s\r\n" % (len(piece), piece))
        if len(pieces) > 50:
            pieces.append(b"%x\r\n%s\r\n" % (len(rest), rest) if rest else b"")
            break
    return b"".join(pieces) + b"0\r\n\r\n"


def inflated(answer: Answer) -> bytes:
    """The body of an answer as it was before it was compressed."""
    encoding = answer.headers.get("content-encoding")
    return answer.body if encoding is None else zlib.decompress(answer.body, 47)  # either of the two


class Connection:
    """One connection after the other to one server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: Sent) -> Answer:
        """Send a request and read its answer. Nobody may leave us without one for longer than `_ANSWER_S`."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        answer = Answer(None)
        try:
            async with asyncio.timeout(_ANSWER_S):
                writer.write(request.raw)
                if request.broken:
                    writer.write_eof()
                await writer.drain()
                answer = await _answer(reader)
        except TimeoutError:
            await self.close()
            raise
        except (OSError, asyncio.IncompleteReadError):
            await self.close()  # it was told nothing: whether that is right is for the caller to say
        if request.broken or answer.status is None or answer.headers.get("connection") == "close":
            await self.close()
        return answer

    async def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head.rstrip().split("\r\n")
    version, status, *_ = line.split(" ")
    assert version == "HTTP/1.1", head
    if status == "100":
        return await _answer(reader)
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in rest)}
    if headers.get("transfer-encoding") == "chunked":
        pieces = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        return Answer(int(status), headers, b"".join(pieces))
    if "content-length" in headers:
        return Answer(int(status), headers, await reader.readexactly(int(headers["content-length"])))
    return Answer(int(status), headers | {"connection": "close"}, await reader.read())
