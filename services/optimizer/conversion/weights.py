"""safetensors, read as its specification says and no further (https://github.com/huggingface/safetensors#format).

A length, a JSON header of that length, and the tensors' bytes one behind the other: without holes, without overlaps,
to the end of the file, each as long as its shape and type say. What is otherwise is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from services.optimizer.rejections import Rejection

_MAX_HEADER_BYTES: Final = 100_000_000
"""The specification's own bound."""
_MAX_TENSORS: Final = 100_000
_MAX_NAME_CHARS: Final = 300
WIDTHS: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes an element."""
_Size = Annotated[int, Meta(ge=0, le=2**40)]


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[_Size, ...], Meta(max_length=8)]
    data_offsets: tuple[_Size, _Size]


@dataclass(frozen=True)
class Tensor:
    """A tensor as it lies in the file: little-endian, row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def read(content: bytes) -> dict[str, Tensor]:
    """The tensors by name.

    Raises:
        Rejection: it is not as specified.
    """
    header, begin = _header(content)
    body = memoryview(content)[begin:]
    tensors: dict[str, Tensor] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: (item[1].data_offsets, item[0])):
        if not 0 < len(name) <= _MAX_NAME_CHARS or not name.isprintable():
            raise _wrong(f"a tensor is called {name[:50]!r}")
        if entry.dtype not in WIDTHS:
            raise _wrong(f"tensor {name!r} is of type {entry.dtype[:20]!r}")
        first, last = entry.data_offsets
        if first != end or last - first != math.prod(entry.shape) * WIDTHS[entry.dtype] or last > len(body):
            raise _wrong(f"the bytes of tensor {name!r} are not where and as many as the header says")
        end = last
        tensors[name] = Tensor(entry.dtype, entry.shape, body[first:last])
    if end != len(body):
        raise _wrong(f"{len(body) - end} bytes belong to no tensor")
    return tensors


def _header(content: bytes) -> tuple[dict[str, _Entry], int]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, len(content) - 8):  # noqa: PLR2004 - the length field
        raise _wrong(f"its header has {length} bytes, the file {len(content)}")
    raw = content[8 : 8 + length]
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = entries.pop("__metadata__", None)
        if metadata is not None:
            msgspec.json.decode(metadata, type=dict[str, str])
        if len(entries) > _MAX_TENSORS:
            raise _wrong(f"it has {len(entries)} tensors")
        return {name: msgspec.json.decode(entry, type=_Entry) for name, entry in entries.items()}, 8 + length
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as err:
        raise _wrong(f"its header is not what it should be ({err})") from err


def _wrong(what: str) -> Rejection:
    return Rejection("invalid_model", f"The safetensors file is damaged or made up: {what}")
