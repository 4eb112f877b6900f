"""Reading every record batch that a broker takes, where aiokafka (0.14) reads only well-formed ones.

Why. A broker checks lengths and checksums, not all that a batch says. These it takes from any producer, and aiokafka
then raises at the same offset for ever, so that the partition stands still, or delivers an offset that is wrong:

- a header name that is not UTF-8 (Java can't send one, C clients can);
- a record's `attributes`, a reserved byte, above 127: aiokafka reads it as a varint and all that follows is shifted;
- offset deltas of an uncompressed batch that are not 0, 1, 2, …: they name other records' offsets;
- a compressed batch whose records contradict their own lengths, or that is followed by other bytes.

What it does. `install` replaces two names in `aiokafka.consumer.fetcher`, for every consumer of the process:

`MemoryRecords` by `TolerantRecords`: each batch is parsed by aiokafka's C extension, as before. Only one that this
can't parse, or whose offsets are wrong, is parsed again by `_Forgiving`, aiokafka's parser in Python without the first
two faults. Bytes of a header name that are not UTF-8 become U+FFFD, which can be encoded again wherever the name goes;
records whose offsets are wrong are numbered as the broker counted them; in the place of each record that can't be read
at all comes one without key, value and headers, which readers refuse as they refuse any other garbage.

`PartitionRecords` by `WholePartitionRecords`: when a batch raises all the same (damaged on disk or on its way),
aiokafka loses the good records that it has read before it in the same call. Here they are delivered first, and the
next call raises.

When it can go: when aiokafka decodes header names leniently, skips `attributes` as a byte, and `FetchResult.getall`
keeps what it has when a later batch fails. The tests of this module then pass without `install`.

It does not hide damage: a batch whose checksum is wrong still raises, since no producer can cause that. It does not
bound what a compressed batch grows to: the broker's bound for a batch is all there is.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

from shared import logs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LENGTH_OFFSET = 8
_BEFORE_LENGTH_ENDS = 12
"""A batch begins with its base offset (8 bytes) and the length (4 bytes) of what follows."""


def install() -> None:
    """Let every aiokafka consumer of this process that is built from here on read tolerantly. Idempotent."""
    fetcher.MemoryRecords = TolerantRecords
    fetcher.PartitionRecords = WholePartitionRecords


class TolerantRecords:
    """The batches of one fetched partition: `aiokafka.record.memory_records.MemoryRecords`, with tolerant batches."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._records = MemoryRecords(data)

    def size_in_bytes(self) -> int:
        """All that was fetched."""
        size: int = self._records.size_in_bytes()
        return size

    def has_next(self) -> bool:
        """Whether another whole batch is there."""
        there: bool = self._records.has_next()
        return there

    def next_batch(self) -> TolerantBatch | None:
        """The next batch, or None."""
        batch = self._records.next_batch()
        if batch is None:
            return None
        start = self._position
        (length,) = struct.unpack_from(">i", self._data, start + _LENGTH_OFFSET)
        self._position = start + _BEFORE_LENGTH_ENDS + length
        return TolerantBatch(batch, memoryview(self._data)[start : self._position])


class TolerantBatch:
    """One batch: all that aiokafka's has, but iterating it forgives."""

    def __init__(self, batch: Any, content: memoryview) -> None:
        self._batch = batch
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)  # how aiokafka looks into control batches, which only brokers write

    def __iter__(self) -> Iterator[Any]:
        """The records, all parsed before the first is given out: what is wrong with one decides how all are read.

        Raises:
            UnsupportedCodecError: the library for its compression is not installed.
        """
        try:
            records = list(self._batch)
        except UnsupportedCodecError:
            raise  # what is missing is a library here, not sense there
        except Exception as err:  # noqa: BLE001 - what the parser and the decompressors raise has no common type
            why = repr(err)
        else:
            if self._in_order(records):
                return iter(records)
            why = "offsets out of order"
        logs.get().warning("a malformed record batch, read leniently", offset=self._batch.base_offset, error=why)
        return self._forgiven()

    def _forgiven(self) -> Iterator[Any]:
        """The records as far as they can be read, and null records in the place of the rest."""
        records: list[Any] = []
        try:
            records.extend(_Forgiving(self._content))
        except Exception as err:  # noqa: BLE001 - as above
            logs.get().warning("unreadable records", offset=self._batch.base_offset + len(records), error=repr(err))
        base = self._batch.base_offset
        if not self._in_order(records):
            records = [replace(record, offset=base + index) for index, record in enumerate(records)]
        unread = range(records[-1].offset + 1 if records else base, self._batch.next_offset)
        stamped_ms = self._batch.max_timestamp
        return chain(records, (_DefaultRecordPy(offset, stamped_ms, 0, None, None, []) for offset in unread))

    def _in_order(self, records: Sequence[Any]) -> bool:
        """Whether offsets grow within the batch's own. Compaction leaves holes in them, nothing else may."""
        if not records:
            return True
        within = self._batch.base_offset <= records[0].offset and records[-1].offset < self._batch.next_offset
        return within and all(one.offset < other.offset for one, other in pairwise(records))


class _Forgiving(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's batch parser in Python, with `_read_msg` as the format has it.

    https://kafka.apache.org/documentation/#record
    """

    _pos: int

    def _read_msg(self) -> _DefaultRecordPy:
        length, start = decode_varint(self._buffer, self._pos)
        delta_ms, position = decode_varint(self._buffer, start + 1)  # one byte of attributes, reserved
        offset_delta, position = decode_varint(self._buffer, position)
        key, position = self._nullable(position)
        value, position = self._nullable(position)
        count, position = decode_varint(self._buffer, position)
        headers = []
        for _ in range(count):
            name, position = self._nullable(position)
            content, position = self._nullable(position)
            headers.append(((name or b"").decode("utf-8", "replace"), content))
        if position != start + length:
            raise CorruptRecordException(f"a record of {length} bytes ends after {position - start}")
        self._pos = position
        stamped_ms = self.max_timestamp if self.timestamp_type else self.first_timestamp + delta_ms
        return _DefaultRecordPy(self.base_offset + offset_delta, stamped_ms, self.timestamp_type, key, value, headers)

    def _nullable(self, position: int) -> tuple[bytes | None, int]:
        """Bytes after their length, a negative one being null, and where they end."""
        length, start = decode_varint(self._buffer, position)
        if length < 0:
            return None, start
        end = start + length
        if end > len(self._buffer):
            raise CorruptRecordException(f"{length} bytes from {start} are beyond the batch")
        return bytes(self._buffer[start:end]), end


class WholePartitionRecords(PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """Records of one fetched partition. An error ends the iteration if there were records before it.

    The position then stands at what could not be read; it is fetched again, and the error comes first.
    """

    def __iter__(self) -> Iterator[Any]:
        iterator: Iterator[Any] = self._records_iterator  # itself: a call a record less
        return iterator

    def _unpack_records(self) -> Iterator[Any]:
        first = self.next_fetch_offset
        try:
            yield from super()._unpack_records()
        except Exception:
            if self.next_fetch_offset == first:
                raise
