"""ONNX with its data beside it: an archive of the model and the files that it names, made one file.

Data are taken out of the archive's own members, by name: nothing is looked up in a file system, so nothing outside can
be meant. Offsets and lengths are held against the member, and the length against the tensor's shape and type.
"""

from __future__ import annotations

import math
import posixpath
from typing import TYPE_CHECKING, Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs in our environment
from onnx import TensorProto, helper

from services.optimizer.conversion.source import Source
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import vet

if TYPE_CHECKING:
    from services.optimizer.conversion.archives import Archive

_KEYS: Final = frozenset({"location", "offset", "length", "checksum", "basepath"})


def convert(archive: Archive, member: str) -> Source:
    """The model with its data inside.

    Raises:
        Rejection: it is not ONNX, or names data that are not there.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(archive.read(member))
    except DecodeError as err:
        raise Rejection("invalid_model", f"Member {member[:100]!r} does not parse as ONNX ({err})") from err
    cache: dict[str, bytes] = {}
    taken = 0
    for message in vet.messages(model):
        if isinstance(message, TensorProto) and (message.external_data or message.data_location):
            taken += _inline(message, archive, member, cache)
    how = f"{taken} tensors taken in from {len(cache)} files beside it"
    return Source(model, how)


def _inline(tensor: TensorProto, archive: Archive, member: str, cache: dict[str, bytes]) -> int:
    about: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    location = about.get("location", "")
    name = posixpath.join(posixpath.dirname(member), location)
    if set(about) - _KEYS or not location or name not in archive:
        found = f"Tensor {tensor.name[:100]!r} lies in {location[:200]!r}, which is not in the archive"
        raise Rejection("external_data", found)
    if name not in cache:
        cache[name] = archive.read(name)
    content = cache[name]
    expected = _byte_size(tensor)
    begin = _number(tensor, about, "offset", 0)
    length = _number(tensor, about, "length", expected)
    if length != expected or begin + length > len(content):
        found = f"Tensor {tensor.name[:100]!r} has {expected} bytes, which are not at {begin} of {location[:100]!r}"
        raise Rejection("external_data", found)
    tensor.raw_data = content[begin : begin + length]
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    return 1


def _byte_size(tensor: Any) -> int:
    if any(dim < 0 for dim in tensor.dims):
        raise Rejection("external_data", f"Tensor {tensor.name[:100]!r} has a negative dimension")
    try:
        width = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError) as err:
        found = f"Tensor {tensor.name[:100]!r} has elements of type {tensor.data_type}"
        raise Rejection("external_data", found) from err
    count: int = math.prod(tensor.dims)
    four_bits = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
    return (count + 1) // 2 if four_bits else count * width


def _number(tensor: Any, about: dict[str, str], name: str, otherwise: int) -> int:
    text = about.get(name, str(otherwise))
    if not (text.isascii() and text.isdigit() and len(text) < 20):  # noqa: PLR2004 - digits of a 64-bit number
        raise Rejection("external_data", f"Tensor {tensor.name[:100]!r} has {name} {text[:50]!r}")
    return int(text)
