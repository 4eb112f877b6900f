"""TensorBoard files: for optimizers' curves and the monitor's series.

A file is a series of TFRecords (https://www.tensorflow.org/tutorials/load_data/tfrecord), each an `Event` with the
value of one scalar (tensorboard/compat/proto/event.proto and summary.proto). Written out here: the libraries that know
the format, torch's and tensorboardX, both load torch into the process, for the few bytes that a point is.
"""

from __future__ import annotations

import struct
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78
"""Of CRC-32C, reflected (RFC 3720, appendix B.4)."""
_MASK_DELTA: Final = 0xA282EAD8
_WIRE_VARINT, _WIRE_DOUBLE, _WIRE_BYTES, _WIRE_FLOAT = 0, 1, 2, 5


def version(wall_time_s: float) -> bytes:
    """The `Event` that a file begins with."""
    return _double(1, wall_time_s) + _bytes(3, b"brain.Event:2")


def scalar(name: str, step: int, value: float, wall_time_s: float) -> bytes:
    """An `Event` with one value."""
    held = _bytes(1, name.encode()) + _tag(2, _WIRE_FLOAT) + struct.pack("<f", value)
    at = _double(1, wall_time_s) + _tag(2, _WIRE_VARINT) + _varint(max(0, step))
    return at + _bytes(5, _bytes(1, held))


def record(content: bytes) -> bytes:
    """A TFRecord: the length, the bytes, and the checksum of each."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def crc32c(content: bytes) -> int:
    """The checksum of TFRecords, bit by bit: a record has some tens of bytes."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _checksum(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF)


def _double(field: int, value: float) -> bytes:
    return _tag(field, _WIRE_DOUBLE) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _tag(field, _WIRE_BYTES) + _varint(len(value)) + value


def _tag(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(value: int) -> bytes:
    """Base 128, the lowest seven bits first (https://protobuf.dev/programming-guides/encoding)."""
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - what fits into seven bits
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
