"""The headers of an inference request on Kafka: the direct contract of upstream systems, and the gateway's additions.

All headers are optional and ASCII; numbers are ASCII decimal. The value and its `content-type` are `shared.tensors`'
business. The gateway is one more producer of this contract; what it alone sends (`reply-channel`,
`registry-offset`) can't change an answer, only where it is announced and how current a worker must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shared.codec import MSGPACK, cloud_event_headers
from shared.errors import InvalidId, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shared.codec import Headers

CE_TYPE = "InferenceRequested"
MAX_ID_BYTES = 200
MAX_HEADER_BYTES = 1000
"""Bound for every header that is read, by name; others are carried (`x-*`) or ignored."""


def derived_id(topic: str, partition: int, offset: int) -> str:
    """The id of a record that has none, or an invalid one."""
    return f"{topic}-{partition}-{offset}"


class RequestHeaders(msgspec.Struct, frozen=True, gc=False):
    """What a request says about itself.

    Attributes:
        request_id: `ce_id`; None if the record has none.
        deadline_ms: Unix time in ms after which nobody waits; None means that the log is a queue and it can wait.
        model_version: the version asked for; None leaves the choice to the registry.
        header_length: length in bytes of the JSON part of an OIP binary body.
        reply_topic: where a copy of the reply is produced.
        reply_channel: the gateway instance that waits, if one does.
        registry_offset: the registry the request was checked against: a worker catches up to it first.
        echo: `x-*` headers, which go onto the copy of the reply.
    """

    request_id: str | None = None
    content_type: str | None = None
    header_length: int | None = None
    deadline_ms: int | None = None
    model_version: int | None = None
    tenant: str | None = None
    reply_topic: str | None = None
    reply_channel: str | None = None
    registry_offset: int | None = None
    traceparent: str | None = None
    echo: tuple[tuple[str, bytes], ...] = ()

    def to_kafka(self, source: str) -> Headers:
        """The headers of a record that `source` produces."""
        headers = cloud_event_headers(
            event_type=CE_TYPE,
            source=source,
            event_id=self.request_id,
            content_type=self.content_type or MSGPACK,
            traceparent=self.traceparent,
        )
        optional = {
            "inference-header-content-length": self.header_length,
            "deadline": self.deadline_ms,
            "model-version": self.model_version,
            "tenant": self.tenant,
            "reply-topic": self.reply_topic,
            "reply-channel": self.reply_channel,
            "registry-offset": self.registry_offset,
        }
        headers += [(name, str(value).encode()) for name, value in optional.items() if value is not None]
        return headers + list(self.echo)


def request_id_of(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """The valid `ce_id`, or None if there is none.

    Raises:
        InvalidId: empty, not printable ASCII, or over 200 bytes.
    """
    return _valid_id({name.lower(): value for name, value in headers}.get("ce_id"))


def from_kafka(headers: Iterable[tuple[str, bytes | None]]) -> RequestHeaders:
    """The headers of a record from anyone.

    Raises:
        InvalidId: see `request_id_of`.
        InvalidInput: a header is not ASCII, too long, or not the number it should be.
    """
    given = tuple(headers)
    reading = _reading(tuple([name for name, _ in given]))
    request_id = None if reading.id_at is None else _valid_id(given[reading.id_at][1])
    read: dict[str, Any] = {field: how(name, given[at][1]) for at, name, field, how in reading.fields}
    if reading.echo:
        read["echo"] = tuple([(given[at][0], given[at][1] or b"") for at in reading.echo])
    return RequestHeaders(request_id=request_id, **read)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is to be read of headers with certain names, and where it stands: of a name given twice, the last."""

    id_at: int | None
    fields: tuple[tuple[int, str, str, Callable[[str, bytes | None], str | int]], ...]
    echo: tuple[int, ...]


@lru_cache(maxsize=256)  # a producer sends the same names in the same order
def _reading(names: tuple[str, ...]) -> _Reading:
    lower = [name.lower() for name in names]
    last = {name: at for at, name in enumerate(lower)}
    return _Reading(
        id_at=last.get("ce_id"),
        fields=tuple([(last[name], name, field, how) for name, (field, how) in _FIELDS.items() if name in last]),
        echo=tuple([at for at, name in enumerate(lower) if name.startswith("x-")]),
    )


def _valid_id(value: bytes | None) -> str | None:
    """Kafka knows null values: a header with one is as good as none."""
    if value is None:
        return None
    if 1 <= len(value) <= MAX_ID_BYTES and value.isascii():
        text = value.decode("ascii")
        if text.isprintable() and " " not in text:
            return text
    raise InvalidId(f"ce_id must be 1 to {MAX_ID_BYTES} printable ASCII characters, none of them a space")


def _text(name: str, value: bytes | None) -> str:
    if value is None:
        return ""
    if len(value) > MAX_HEADER_BYTES:
        raise InvalidInput(f"header {name} is longer than {MAX_HEADER_BYTES} bytes")
    try:
        return value.decode("ascii")
    except UnicodeDecodeError as err:
        raise InvalidInput(f"header {name} is not ASCII") from err


def _number(name: str, value: bytes | None) -> int:
    text = _text(name, value)
    if not (text.isdigit() and len(text) <= 18):  # noqa: PLR2004 - below 2**63
        raise InvalidInput(f"header {name} is {text[:40]!r}, not a decimal number")
    return int(text)


_usual_text: Final = lru_cache(maxsize=1024)(_text)
"""Of headers with few values."""
_usual_number: Final = lru_cache(maxsize=1024)(_number)

_FIELDS: Final[dict[str, tuple[str, Callable[[str, bytes | None], str | int]]]] = {
    "content-type": ("content_type", _usual_text),
    "inference-header-content-length": ("header_length", _usual_number),
    "deadline": ("deadline_ms", _number),
    "model-version": ("model_version", _usual_number),
    "tenant": ("tenant", _usual_text),
    "reply-topic": ("reply_topic", _usual_text),
    "reply-channel": ("reply_channel", _usual_text),
    "registry-offset": ("registry_offset", _usual_number),
    "traceparent": ("traceparent", _text),
}
"""Headers by name: the field that says the same, and how it is read."""
