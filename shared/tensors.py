"""Tensors of the Open Inference Protocol v2: datatypes, raw bytes, numpy arrays and JSON elements.

A `Tensor` holds raw bytes, little-endian and row-major, because that is what travels (Kafka, Redis, binary HTTP) and
what digests cover; arrays are views of those bytes. BOOL is one byte, 0 or 1. BF16 is two bytes, which numpy sees as
`uint16` bit patterns. BYTES is each element behind its length as a little-endian uint32.

JSON. Elements come flat or nested exactly as the shape says. Integers must be integers in range, BOOL must be
`true`/`false`, BYTES are UTF-8 strings. Numbers for FP* are read as FP64, as RFC 8259 expects of readers, then rounded
to nearest even; a finite number that would become infinite is refused. Floats are written as the shortest decimal
that reads back exactly, FP16 and BF16 that of the FP32 they equal. NaN and infinity become null: JSON has neither.

`check` is the one place where bytes from outside are compared with datatype and shape; every decoder calls it. What
the platform computed itself is not checked again.

Claim checks. A tensor may lie in the artifact store instead: `artifact` says where, and `data` is empty until someone
has fetched it (`claimed`). Such a tensor is checked twice: its size when it is read (`claim`), its bytes when they are
there (`check`). Code that forgets the difference meets no bytes, which `to_numpy` refuses, never wrong ones.

Not here: the request around the tensors (`shared.oip`), what a model expects of them (`shared.signature`), the store.
"""

from __future__ import annotations

import hashlib
import math
import struct
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

import msgspec
import numpy as np

from shared.artifacts import Artifact
from shared.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]
FloatDatatype = Literal["FP16", "FP32", "FP64", "BF16"]
Array = np.ndarray[Any, np.dtype[Any]]

MAX_RANK: Final = 32
MAX_TENSOR_BYTES: Final = 2**63 - 1
"""What numpy can address; real limits are those on the body that carries the tensor."""

_CODES = ("?", "<u1", "<u2", "<u4", "<u8", "<i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", "<u2", "O")
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(code) for name, code in zip(get_args(Datatype), _CODES, strict=True)
}
"""How numpy holds each datatype: BF16 as bit patterns, BYTES as objects of type `bytes`."""

_OF_DTYPE: Final = {
    **{dtype.str[1:]: name for name, dtype in DTYPES.items() if name not in {"BF16", "BYTES"}},
    **dict.fromkeys("OUS", "BYTES"),
}
_JSON_TYPES: Final[dict[str, set[type]]] = {
    **{name: {int} for name in DTYPES},
    **{name: {int, float} for name in ("FP16", "FP32", "FP64", "BF16")},
    "BOOL": {bool},
    "BYTES": {str, bytes},  # msgpack lists have both; JSON can't spell the latter
}
_LENGTH: Final = struct.Struct("<I")
_STRUCT_CODES: Final = {"FP32": "f", "FP64": "d"}


class Tensor(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A named tensor; `data` is raw little-endian row-major bytes (format `B` if a memoryview, maybe of an array).

    `artifact`, if there is one, holds the same bytes in the artifact store.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview
    artifact: Artifact | None = None

    @property
    def claimed(self) -> bool:
        """Whether the bytes are in the artifact store only."""
        return self.artifact is not None and len(self.data) != self.artifact.byte_size

    @property
    def size_bytes(self) -> int:
        """The bytes of the tensor, wherever they are."""
        return len(self.data) if self.artifact is None else self.artifact.byte_size


def refuse(name: str, problem: str) -> NoReturn:
    """Raise `InvalidInput` with a sentence that names the tensor."""
    raise InvalidInput(f"tensor {name!r} {problem}")


def check(tensor: Tensor) -> Tensor:
    """Return the tensor if its bytes are what its datatype and shape promise.

    Raises:
        InvalidInput: unknown datatype; rank above `MAX_RANK`; dims that are negative, not integers or too large
            together; a wrong byte length; a BOOL other than 0 and 1; BYTES prefixes that miss the end.
    """
    check_size(tensor, len(tensor.data))
    if tensor.datatype == "BYTES":
        bytes_elements(tensor)
    elif tensor.datatype == "BOOL" and np.frombuffer(tensor.data, np.uint8).max(initial=0) > 1:
        refuse(tensor.name, "has BOOL bytes other than 0 and 1")
    return tensor


def check_size(tensor: Tensor, size_bytes: int) -> None:
    """Hold datatype and shape against a number of bytes that nobody has seen yet. BYTES need a length an element.

    Raises:
        InvalidInput: as `check`, but for what only the bytes themselves can show.
    """
    count, itemsize = _check_shape(tensor)
    if tensor.datatype == "BYTES":
        if not count * _LENGTH.size <= size_bytes <= MAX_TENSOR_BYTES:
            refuse(tensor.name, f"of BYTES has length prefixes that do not fit its {size_bytes} bytes")
    elif size_bytes != count * itemsize:
        expected = f"{tensor.datatype} of shape {list(tensor.shape)} has {count * itemsize}"
        refuse(tensor.name, f"has {size_bytes} bytes, but {expected}")


def claim(name: str, datatype: str, shape: tuple[int, ...], artifact: Artifact) -> Tensor:
    """A tensor whose bytes are in the artifact store.

    Raises:
        InvalidInput: as `check_size`, for the artifact's size.
    """
    tensor = Tensor(name, datatype, shape, b"", artifact)
    check_size(tensor, artifact.byte_size)
    return tensor


def to_numpy(tensor: Tensor) -> Array:
    """An array of the tensor's shape and `DTYPES` type: BF16 as uint16 bit patterns, BYTES as `bytes` objects.

    The array is a read-only view of the tensor's bytes where these are aligned to an element (a tensor in the middle
    of a binary body may not be), else a copy. The tensor must have passed `check` or come from `from_numpy`.
    """
    if tensor.datatype == "BYTES":
        objects = np.empty(math.prod(tensor.shape), dtype=object)
        objects[:] = bytes_elements(tensor)
        return objects.reshape(tensor.shape)
    array = np.frombuffer(tensor.data, dtype=DTYPES[tensor.datatype]).reshape(tensor.shape)
    return array if array.flags.aligned else array.copy()


def joined(tensors: Sequence[Tensor], axis: int) -> Array:
    """The arrays of tensors of one datatype, whose shapes differ along `axis` at most, as one; see `to_numpy`."""
    first = tensors[0]
    if axis or first.datatype == "BYTES":
        return np.concatenate([to_numpy(tensor) for tensor in tensors], axis=axis)
    # Rows lie one after the other: so do the bytes.
    data, rows = b"".join([tensor.data for tensor in tensors]), sum([tensor.shape[0] for tensor in tensors])
    return np.frombuffer(data, DTYPES[first.datatype]).reshape(rows, *first.shape[1:])


def from_numpy(name: str, array: npt.ArrayLike, datatype: str | None = None) -> Tensor:
    """A tensor over the array's own memory, copied only if it isn't contiguous and little-endian.

    The datatype follows from the array's dtype; strings (`str`, `np.str_`) become UTF-8 BYTES. Give `BF16` for uint16
    bit patterns; any other datatype given must be the array's own, since nothing is converted silently. Don't write
    to the array afterwards.

    Raises:
        InvalidInput: a dtype that the protocol lacks or that isn't `datatype`, or objects that aren't strings.
    """
    values = np.asarray(array)
    code = values.dtype.kind if values.dtype.kind in "OUS" else f"{values.dtype.kind}{values.dtype.itemsize}"
    found = "BF16" if values.dtype.name == "bfloat16" else _OF_DTYPE.get(code)
    if datatype == "BF16" and found == "UINT16":
        found = "BF16"
    if found is None or (datatype is not None and datatype != found):
        refuse(name, f"is an array of {values.dtype}, not of {datatype or 'a datatype of the protocol'}")
    if found == "BYTES":
        return Tensor(name, found, values.shape, _pack_elements(name, values.reshape(-1).tolist()))
    bits = values.view(np.uint16) if values.dtype.name == "bfloat16" else values
    flat = np.ascontiguousarray(bits, dtype=DTYPES[found]).reshape(-1)
    return Tensor(name, found, values.shape, flat.view(np.uint8).data)


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> Tensor:
    """A checked tensor from the elements of an OIP JSON body, flat or nested as `shape` says.

    Raises:
        InvalidInput: elements of the wrong type or range, the wrong number of them, or a shape that `check` refuses.
    """
    count, _ = _check_shape(Tensor(name, datatype, shape, b""))
    flat = _flatten(name, shape, data)
    if len(flat) != count:
        _refuse_number(name, len(flat), shape, count)
    # Types are looked at before numpy sees the list: it would promote [true, 2] to integers and [2, 2.5] to floats.
    if strange := set(map(type, flat)) - _JSON_TYPES[datatype]:
        refuse(name, f"of {datatype} has elements of type {', '.join(sorted(kind.__name__ for kind in strange))}")
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, _pack_elements(name, flat))
    return _of_numbers(name, datatype, shape, flat)


def from_floats(name: str, datatype: FloatDatatype, shape: tuple[int, ...], flat: list[float]) -> Tensor:
    """As `from_json`, of elements that are known to be floats, in a flat list."""
    count, _ = _check_shape(Tensor(name, datatype, shape, b""))
    if len(flat) != count:
        _refuse_number(name, len(flat), shape, count)
    return _of_numbers(name, datatype, shape, flat)


def to_json(tensor: Tensor) -> Array | list[str]:
    """The tensor's elements, flat, as orjson prints them with `OPT_SERIALIZE_NUMPY`.

    Raises:
        InvalidInput: BYTES that are not UTF-8, which only the binary form can carry.
    """
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in bytes_elements(tensor)]
        except UnicodeDecodeError:
            refuse(tensor.name, "has BYTES that are not UTF-8: ask for it in binary (parameter binary_data)")
    flat = to_numpy(tensor).reshape(-1)
    return bf16_floats(flat) if tensor.datatype == "BF16" else flat


def bytes_elements(tensor: Tensor) -> list[bytes]:
    """The elements of a BYTES tensor in row-major order.

    Raises:
        InvalidInput: the length prefixes don't walk exactly to the end in as many steps as the shape has elements.
    """
    data, at, elements = tensor.data, 0, []
    try:
        for _ in range(math.prod(tensor.shape)):
            start = at + _LENGTH.size
            at = start + _LENGTH.unpack_from(data, at)[0]
            elements.append(bytes(data[start:at]))
    except struct.error:
        at = len(data) + 1  # a prefix beyond the end, reported below like an element beyond the end
    if at != len(data):
        refuse(tensor.name, f"of BYTES has length prefixes that do not fit its {len(data)} bytes")
    return elements


def bf16_bits(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Round numbers to BF16, nearest even, and return the bit patterns.

    Rounds FP64 to eight significant bits at once; by way of FP32 it would round twice. Under
    `np.errstate(over="raise")` a finite number that BF16 can't hold raises FloatingPointError.
    """
    wide = np.asarray(values, dtype=np.float64)
    exponent = np.frexp(wide)[1]
    unit = np.maximum(exponent - 8, -133)  # -133: the last bit of a subnormal
    rounded = np.ldexp(np.rint(np.ldexp(wide, -unit)), unit)
    bits: npt.NDArray[np.uint16] = (rounded.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return bits


def bf16_floats(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The FP32 numbers that BF16 bit patterns stand for, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def output_digest(outputs: Iterable[Tensor]) -> str:
    """SHA-256, lowercase hex, over the raw bytes of the outputs in order: `output_sha256` of a receipt."""
    digest = hashlib.sha256()
    for tensor in outputs:
        digest.update(tensor.data)
    return digest.hexdigest()


def _check_shape(tensor: Tensor) -> tuple[int, int]:
    """Number of elements and the bytes of one in numpy, for a known datatype and a shape that numpy can hold."""
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        refuse(tensor.name, f"has the unknown datatype {tensor.datatype!r}")
    if len(tensor.shape) > MAX_RANK:
        refuse(tensor.name, f"has rank {len(tensor.shape)}, above {MAX_RANK}")
    for dim in tensor.shape:
        if type(dim) is not int or dim < 0:
            refuse(tensor.name, f"has the shape {list(tensor.shape)}: dims must be integers from 0")
    count = math.prod(tensor.shape)
    # Zeros are left out: numpy refuses (0, 2**62), and a product of 0 would hide it.
    if (count or math.prod(dim or 1 for dim in tensor.shape)) * dtype.itemsize > MAX_TENSOR_BYTES:
        refuse(tensor.name, f"has the shape {list(tensor.shape)}, which is too large")
    return count, dtype.itemsize


def _flatten(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """The elements of a flat list, or of lists nested exactly as the shape says; loops run in C."""
    if not data or type(data[0]) is not list:
        return data
    level: list[Any] = [data]
    for length in shape:
        if set(map(type, level)) - {list} or set(map(len, level)) - {length}:
            refuse(name, f"has data nested otherwise than its shape {list(shape)}")
        level = list(chain.from_iterable(level))
    return level


def _pack_numbers(datatype: str, flat: list[Any]) -> bytes:
    """Numbers as raw bytes. FP32 and FP64, which most are, without the steps that numpy takes for a few of them.

    Raises:
        OverflowError, FloatingPointError, struct.error: a number that the datatype can't hold.
    """
    if code := _STRUCT_CODES.get(datatype):
        return struct.pack(f"<{len(flat)}{code}", *flat)
    with np.errstate(over="raise"):
        array = bf16_bits(flat) if datatype == "BF16" else np.array(flat, dtype=DTYPES[datatype])
    return array.tobytes()


def _of_numbers(name: str, datatype: str, shape: tuple[int, ...], flat: list[Any]) -> Tensor:
    try:
        return Tensor(name, datatype, shape, _pack_numbers(datatype, flat))
    except (OverflowError, FloatingPointError, struct.error):
        refuse(name, f"has numbers outside the range of {datatype}")


def _refuse_number(name: str, given: int, shape: tuple[int, ...], count: int) -> NoReturn:
    refuse(name, f"has {given} elements, but shape {list(shape)} has {count}")


def _pack_elements(name: str, elements: Sequence[Any]) -> bytes:
    """BYTES elements, each behind its length; strings as UTF-8."""
    parts: list[bytes] = []
    for element in elements:
        if not isinstance(element, str | bytes):
            refuse(name, f"of BYTES has an element of type {type(element).__name__}")
        try:
            raw = element.encode() if isinstance(element, str) else bytes(element)
        except UnicodeEncodeError:
            refuse(name, "has a string that UTF-8 can't carry")
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)
