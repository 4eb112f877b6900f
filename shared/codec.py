"""Bytes of control events, and the only import of msgpack.

An event's value is a msgpack map of its fields plus `schema`, the version of its shape. Unknown fields are ignored,
so that a newer writer does not stop an older reader; a *higher schema version* is refused, since it says that the
meaning changed. The rest of the envelope is CloudEvents 1.0 in Kafka's binary mode: attributes are `ce_*` headers
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md).

Untrusted bytes come through here: every limit of the decoder is set, and whatever it raises becomes `InvalidInput`.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack
from pydantic import ValidationError

from shared.errors import InvalidInput

if TYPE_CHECKING:
    from shared.events import Event

E = TypeVar("E", bound="Event")
MSGPACK = "application/msgpack"
MAX_BYTES = 64 * 1024 * 1024
"""Largest msgpack document decoded, in bytes; Redis results are the largest there are."""

Headers = list[tuple[str, bytes]]


def pack(value: Any) -> bytes:
    """Encode maps, lists, strings, bytes and numbers as msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes | memoryview) -> Any:
    """Decode msgpack from anyone.

    Raises:
        InvalidInput: not exactly one msgpack document, nested too deeply, or above `MAX_BYTES`.
    """
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"msgpack document of {len(data)} bytes is above {MAX_BYTES}")
    try:
        # A length beyond the document is a lie, and refused: unpackb bounds every length by the size of its input.
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as err:
        raise InvalidInput(f"not a msgpack document: {err or type(err).__name__}") from err


def to_map(event: Event) -> dict[str, Any]:
    """The event as the map that goes on the wire; as in JSON, its keys are strings, numbers too."""
    return {"schema": event.schema_version, **event.model_dump(mode="json")}


def encode_event(event: Event) -> bytes:
    """The event's record value."""
    return pack(to_map(event))


def decode_event(event_type: type[E], value: bytes | memoryview | None) -> E:
    """A record value as an event of the type its `ce_type` names.

    Raises:
        InvalidInput: not a map, a newer schema, or fields that break the event's rules.
    """
    return from_map(event_type, unpack(value or b""))


def from_map(event_type: type[E], fields: Any) -> E:
    """The inverse of `to_map`, with the same errors as `decode_event`."""
    if not isinstance(fields, dict):
        raise InvalidInput(f"{event_type.__name__}: expected a map, got {type(fields).__name__}")
    schema = fields.get("schema")
    if type(schema) is not int or not 1 <= schema <= event_type.schema_version:
        raise InvalidInput(f"{event_type.__name__}: schema {schema!r} is not one of 1..{event_type.schema_version}")
    try:
        return event_type.model_validate(fields)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{event_type.__name__}.{where}: {first['msg']}") from err


def cloud_event_headers(
    *,
    event_type: str,
    source: str,
    event_id: str | None = None,
    content_type: str = MSGPACK,
    traceparent: str | None = None,
) -> Headers:
    """CloudEvents attributes for one record. `source` is the instance that writes; a fresh UUID if no id is given."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_type", event_type.encode()),
        ("ce_source", source.encode()),
        ("ce_id", (event_id or str(uuid.uuid4())).encode()),
        ("ce_time", rfc3339(time.time_ns()).encode()),
        ("content-type", content_type.encode()),
    ]
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    return headers


def rfc3339(time_ns: int) -> str:
    """A UTC time in RFC 3339 with nanoseconds, from nanoseconds since the epoch."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
