"""Bytes of control events, and the home of msgpack and of msgspec's encoders.

An event's value is a msgpack map of its fields, first of all `schema`, the version of its form. Unknown fields are
ignored, so that a newer writer does not stop an older reader; a *higher schema* is refused, since it says that the
meaning changed. As in JSON, keys are strings, those of a map by number too. The rest of the envelope is CloudEvents 1.0
in Kafka's binary mode: attributes are `ce_*` headers
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md).

An event as we write it is decoded in one pass (msgspec, some 1 µs). What that does not take, be it damaged or only
written differently, goes the careful way: to a map, and that map to the event; it decides, and says what is wrong.

Untrusted bytes come through here: every limit of the decoder is set, and whatever it raises becomes `InvalidInput`.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack
import msgspec
from msgspec import inspect

from shared.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """The event as the map that goes on the wire."""
    fields: dict[str, Any] = msgspec.to_builtins(event, str_keys=True)
    return fields


def encode_event(event: Event) -> bytes:
    """The event's record value. Whether it keeps the event's rules is found out by who decodes it."""
    return _form(type(event)).encode(event)


def decode_event(event_type: type[E], value: bytes | memoryview | None) -> E:
    """A record value as an event of the type its `ce_type` names.

    Raises:
        InvalidInput: not a map, no schema or a newer one, or fields that break the event's rules.
    """
    data = bytes(value or b"")
    event = _as_we_write_it(event_type, data)
    return from_map(event_type, unpack(data)) if event is None else event


def _as_we_write_it(event_type: type[E], data: bytes) -> E | None:
    """The event, if nothing about its bytes is unusual."""
    begin = 3 if data[:1] == _MAP16 else 1
    if not data.startswith(_SCHEMA, begin) or len(data) > MAX_BYTES:
        return None
    form = _form(event_type)
    try:
        event: E = form.decode(data)
    except _REFUSED:
        return None
    return event if 1 <= event.schema <= form.newest_schema else None


def from_map(event_type: type[E], fields: Any) -> E:
    """The inverse of `to_map`, with the same errors as `decode_event`."""
    name = event_type.__name__
    if not isinstance(fields, dict):
        raise InvalidInput(f"{name}: expected a map, got {type(fields).__name__}")
    schema, newest = fields.get("schema"), _form(event_type).newest_schema
    if type(schema) is not int or not 1 <= schema <= newest:
        raise InvalidInput(f"{name}: schema {schema!r} is not one of 1..{newest}")
    try:
        return msgspec.convert(fields, event_type, str_keys=True)
    except _REFUSED as err:
        problem, _, where = str(err).partition(" - at ")
        raise InvalidInput(f"{name}{where.rpartition('$')[2].rstrip('`')}: {problem}") from err


_SCHEMA = b"\xa6schema"
_MAP16 = b"\xde"
"""Begins a map of more than 15 fields, whose number follows in two bytes."""
_REFUSED = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises."""


@dataclass(frozen=True, slots=True)
class _Form:
    """How one type of event is written and read."""

    newest_schema: int
    encode: Callable[[Event], bytes]
    decode: Callable[[bytes], Any]


@cache
def _form(event_type: type[Event]) -> _Form:
    [newest] = [field.default for field in msgspec.structs.fields(event_type) if field.name == "schema"]
    encode = msgspec.msgpack.Encoder().encode
    by_number = _has_numbers_as_keys(inspect.type_info(event_type))  # which msgspec would leave numbers
    return _Form(
        newest,
        (lambda event: encode(to_map(event))) if by_number else encode,
        msgspec.msgpack.Decoder(event_type).decode,
    )


def _has_numbers_as_keys(kind: inspect.Type) -> bool:
    """Whether a value of this type can hold a map by number."""
    match kind:
        case inspect.DictType(key_type=key, value_type=value):
            return isinstance(key, inspect.IntType) or _has_numbers_as_keys(value)
        case inspect.VarTupleType(item_type=item):
            return _has_numbers_as_keys(item)
        case inspect.UnionType(types=types):
            return any(map(_has_numbers_as_keys, types))
        case inspect.StructType(fields=fields):
            return any(_has_numbers_as_keys(field.type) for field in fields)
        case _:
            return False


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
    return f"{_to_the_second(seconds)}.{nanoseconds:09d}Z"


@lru_cache(maxsize=16)  # many things happen within a second, and formatting costs more than the rest of them
def _to_the_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
