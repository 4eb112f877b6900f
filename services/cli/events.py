"""Server-sent events as they arrive (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Lines end at LF or CRLF only: `str.splitlines`, which HTTP clients' line iterators use, also breaks at characters that
may stand in a JSON string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def parse(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Name and data of each event, as soon as it is complete. Comments, ids and what is unknown are left out."""
    name, data = "message", list[str]()
    for line in _lines(chunks):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
