"""Heads of usual inference requests, read once.

A client sends the same head again and again; what it says is remembered by its bytes. A head that was not seen before
is read by httptools, as uvicorn reads all others, so both ways agree on what HTTP is. What is usual: one POST to an
infer path over HTTP/1.1, a small body of known length, the connection kept, and no header that asks for more than an
answer. Of anything else nothing is said here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httptools

SMALL_BYTES: Final = 64 * 1024
"""A body up to this is small."""
MOST_HEAD_BYTES: Final = 4096
END: Final = b"\r\n\r\n"
_PATH: Final = re.compile(rb"/v2/models/([A-Za-z0-9-]{1,100})(?:/versions/([0-9]{1,10}))?/infer")
_ASKS_FOR_MORE: Final = frozenset(
    {"transfer-encoding", "expect", "upgrade", "content-encoding", "prefer", "idempotency-key"}
)
_KNOWN_HEADS: Final = 512


@dataclass(frozen=True, slots=True)
class Head:
    """What a usual head says. `headers` are by lower-case name; those of one name are one list, as HTTP has it."""

    path: bytes
    model: str
    version: int | None
    headers: dict[str, str]
    body_bytes: int


class _Read:
    """What httptools calls back with."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, raw_name: bytes, raw_value: bytes) -> None:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        known = self.headers.get(name)
        self.headers[name] = value if known is None else f"{known}, {value}"  # RFC 9110, section 5.3


@lru_cache(maxsize=_KNOWN_HEADS)
def usual(head: bytes) -> Head | None:
    """What a whole head (`END` included) says; None if it is not usual, or not HTTP at all."""
    read = _Read()
    parser = httptools.HttpRequestParser(read)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    path, length = _PATH.fullmatch(read.url), read.headers.get("content-length", "")
    if path is None or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
        return None
    if not parser.should_keep_alive() or not _ASKS_FOR_MORE.isdisjoint(read.headers):
        return None
    if not (length.isascii() and length.isdecimal() and len(length) <= 6 and 0 < int(length) <= SMALL_BYTES):  # noqa: PLR2004 - digits
        return None
    version = None if path[2] is None else int(path[2])
    return Head(read.url, path[1].decode(), version, read.headers, int(length))
