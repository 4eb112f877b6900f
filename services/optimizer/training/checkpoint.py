"""The state of a training run between two epochs, as bytes: arrays in an npz, and a JSON document. No pickle."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import numpy as np

from services.optimizer.training.errors import InvalidData

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.optimizer.training.weights import Array

_ABOUT: Final = "about"
T = TypeVar("T")


def pack(about: msgspec.Struct, arrays: Mapping[str, Array]) -> bytes:
    """The same bytes for the same state."""
    buffer = io.BytesIO()
    document = np.frombuffer(msgspec.json.encode(about), np.uint8)
    np.savez(buffer, allow_pickle=False, **{_ABOUT: document}, **arrays)
    return buffer.getvalue()


def unpack(content: bytes, kind: type[T]) -> tuple[T, dict[str, Array]]:
    """What `pack` was given.

    Raises:
        InvalidData: the bytes are something else.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return msgspec.json.decode(arrays.pop(_ABOUT).tobytes(), type=kind), arrays
    except Exception as err:
        raise InvalidData(f"Not a checkpoint of a training run: {err!r}") from err
