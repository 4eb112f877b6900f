"""Fetches from Kafka, written and read in fewer steps than aiokafka (0.14) takes.

Why. aiokafka goes through a message field by field: a turn of a generator, two calls and one `struct` operation for a
few bytes. A fetch names every partition of its consumer, there and back: eight of them cost 70 µs, and a consumer
fetches once a batch, or every two seconds if nothing comes.

What it does. `install` replaces `encode` of the request and `decode` of the response in version 11, the newest that
aiokafka speaks and what any broker since Kafka 2.3 agrees to. Bytes and values are the same, which the tests hold
against aiokafka's own; other versions, and all other messages, are left to aiokafka. One field alone is changed: a
wait of a second or more ends at the next multiple of itself on this machine's clock. So the waits of all consumers
that have nothing to do end together, in one wake-up instead of one each, which is half of what they cost.

When it can go: when aiokafka packs fields together itself.

https://kafka.apache.org/protocol.html#The_Messages_Fetch
"""

from __future__ import annotations

import time
from struct import Struct, error
from typing import TYPE_CHECKING, Any, Final

from aiokafka.protocol.fetch import FetchRequest_v11, FetchResponse_v11

if TYPE_CHECKING:
    from io import BytesIO

_LONG_WAIT_MS: Final = 1000
_LENGTH: Final = Struct(">h")
_COUNT: Final = Struct(">i")
_ASKED: Final = Struct(">iiiibiii")
"""Replica, longest wait, least and most bytes, isolation, session, its epoch; how many topics."""
_ASKED_OF: Final = Struct(">iiqqi")
"""Partition, leader's epoch, offset, the follower's first offset, most bytes."""
_GOT: Final = Struct(">ihii")
"""Throttled for, error, session; how many topics."""
_GOT_OF: Final = Struct(">ihqqqi")
"""Partition, error, high watermark, last stable offset, first offset; how many aborted transactions, -1 for null."""
_ABORTED: Final = Struct(">qq")
"""Producer, its first offset."""
_RECORDS: Final = Struct(">ii")
"""Preferred replica; bytes of records, -1 for null."""


def install() -> None:
    """Let every aiokafka consumer of this process fetch so. Idempotent."""
    FetchRequest_v11.encode = _encode
    FetchResponse_v11.decode = classmethod(_decode)


def _encode(self: Any) -> bytes:
    parts = [
        _ASKED.pack(
            self.replica_id,
            _until_others_wake_ms(self.max_wait_time),
            self.min_bytes,
            self.max_bytes,
            self.isolation_level,
            self.session_id,
            self.session_epoch,
            len(self.topics),
        )
    ]
    for topic, partitions in self.topics:
        parts += (_string(topic), _COUNT.pack(len(partitions)))
        parts += [_ASKED_OF.pack(*partition) for partition in partitions]
    parts.append(_COUNT.pack(len(self.forgotten_topics_data)))
    for topic, partitions in self.forgotten_topics_data:
        parts += (_string(topic), _COUNT.pack(len(partitions)), *map(_COUNT.pack, partitions))
    return b"".join((*parts, _string(self.rack_id)))


def _until_others_wake_ms(wait_ms: int) -> int:
    """How long to wait at most: a short wait is as it was, a long one ends where all others of that length do."""
    return wait_ms if wait_ms < _LONG_WAIT_MS else wait_ms - time.monotonic_ns() // 1_000_000 % wait_ms


def _string(text: str) -> bytes:
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _decode(cls: Any, data: BytesIO) -> Any:
    reader = _Reader(data)
    try:
        *about, topics = reader.take(_GOT)
        return cls(*about, [reader.topic() for _ in range(topics)])
    except error as err:
        raise ValueError(f"a fetch response that ends too soon: {err}") from err


class _Reader:
    """Takes a response from the front."""

    def __init__(self, data: BytesIO) -> None:
        self._data = data.getbuffer()
        self._at = data.tell()

    def take(self, form: Struct) -> tuple[Any, ...]:
        """The next fields."""
        start, self._at = self._at, self._at + form.size
        return form.unpack_from(self._data, start)

    def bytes(self, length: int) -> bytes:
        """The next bytes."""
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise error(f"{length} bytes from {start} of {len(self._data)}")
        return bytes(self._data[start : self._at])

    def topic(self) -> tuple[str, list[Any]]:
        """A topic and its partitions."""
        (length,) = self.take(_LENGTH)
        name = self.bytes(length).decode()
        (partitions,) = self.take(_COUNT)
        return name, [self.partition() for _ in range(partitions)]

    def partition(self) -> tuple[Any, ...]:
        """What there is to say of a partition, and its records."""
        *about, aborted = _GOT_OF.unpack_from(self._data, self._at)  # there are many of these: no `take`
        self._at += _GOT_OF.size
        transactions = None if aborted < 0 else [self.take(_ABORTED) for _ in range(aborted)] if aborted else []
        replica, length = _RECORDS.unpack_from(self._data, self._at)
        self._at += _RECORDS.size
        return *about, transactions, replica, self.bytes(length) if length > 0 else None if length else b""
