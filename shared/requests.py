"""The headers of an inference request on Kafka: the direct contract of upstream systems, and the gateway's additions.

All headers are optional and ASCII; numbers are ASCII decimal. The value and its `content-type` are `shared.tensors`'
business. The gateway is one more producer of this contract; what it alone sends (`reply-channel`,
`registry-offset`) can't change an answer, only where it is announced and how current a worker must be.
"""

from __future__ import annotations

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
    return _id(_by_name(headers))


def from_kafka(headers: Iterable[tuple[str, bytes | None]]) -> RequestHeaders:
    """The headers of a record from anyone.

    Raises:
        InvalidId: see `request_id_of`.
        InvalidInput: a header is not ASCII, too long, or not the number it should be.
    """
    known: dict[str, bytes | None] = {}
    echo: list[tuple[str, bytes]] = []
    for name, value in headers:
        lower = name.lower()
        known[lower] = value
        if lower.startswith("x-"):
            echo.append((name, value or b""))
    request_id = _id(known)
    read: dict[str, Any] = {field: how(name, known[name]) for name, (field, how) in _FIELDS.items() if name in known}
    return RequestHeaders(request_id=request_id, echo=tuple(echo), **read)


def _by_name(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, bytes | None]:
    """The last of each name; Kafka knows null values."""
    return {name.lower(): value for name, value in headers}


def _id(headers: dict[str, bytes | None]) -> str | None:
    value = headers.get("ce_id")
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


_FIELDS: Final[dict[str, tuple[str, Callable[[str, bytes | None], str | int]]]] = {
    "content-type": ("content_type", _text),
    "inference-header-content-length": ("header_length", _number),
    "deadline": ("deadline_ms", _number),
    "model-version": ("model_version", _number),
    "tenant": ("tenant", _text),
    "reply-topic": ("reply_topic", _text),
    "reply-channel": ("reply_channel", _text),
    "registry-offset": ("registry_offset", _number),
    "traceparent": ("traceparent", _text),
}
"""Headers by name: the field that says the same, and how it is read."""
