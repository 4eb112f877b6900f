"""Data sets: files of rows that people upload, read without running anything that is in them.

NumPy's `.npz` without objects (a pickle is refused, not opened), or Parquet. Sizes are looked at before anything is
unpacked; that the readers' own code may be attacked by a file is why this happens in the child alone.

Every array has its rows along axis 0. An input's array has one row for each, of the shape that the input has without
its batch axis; in Parquet, which has no shapes, a column of numbers or of (nested) lists is brought to it. `label` has
a class a row, and an array by the name of an output has the right answers of that output.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shared.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from services.optimizer.sandbox.engine import Feeds
    from services.optimizer.sandbox.probes import Axes
    from shared.signature import Signature, TensorSpec
    from shared.tensors import Array

LABEL: Final = "label"
MAX_BYTES: Final = 2 * 1024**3
"""Unpacked, all arrays together."""
_MAX_ARRAYS: Final = 200
_ZIP: Final = b"PK\x03\x04"
_PARQUET: Final = b"PAR1"


class Unusable(Exception):
    """The file is no data set, or does not fit the model; the message says what is wrong."""


@dataclass(frozen=True)
class DataSet:
    """Rows of inputs, and what is known of the right answers."""

    inputs: Mapping[str, Array]
    label: Array | None = None
    """i64[rows]."""
    targets: Mapping[str, Array] = field(default_factory=dict)
    """Right answers by output."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def truth(self, output: str) -> Array | None:
        """The right answers of an output: its own, else the label; shapes show whether that is of this output."""
        return self.targets.get(output, self.label)

    def part(self, places: Array) -> DataSet:
        """The rows at these places."""
        return DataSet(
            {name: array[places] for name, array in self.inputs.items()},
            None if self.label is None else self.label[places],
            {name: array[places] for name, array in self.targets.items()},
        )

    def split(self, share: float, seed: int) -> tuple[DataSet, DataSet]:
        """A seeded part of so large a share, at least a row, and the rest."""
        places = np.random.default_rng(seed).permutation(len(self))
        many = min(max(1, round(share * len(self))), len(self) - 1)
        return self.part(places[:many]), self.part(places[many:])

    def feeds(self, axes: Axes, most: int | None = None) -> list[Feeds]:
        """One row each, with its batch axes; the first `most`."""
        count = len(self) if most is None else min(most, len(self))
        return [{name: _row(array[place], axes[name]) for name, array in self.inputs.items()} for place in range(count)]


def _row(array: Array, axis: int | None) -> Array:
    return np.ascontiguousarray(array if axis is None else np.expand_dims(array, axis))


def read(path: Path, signature: Signature, axes: Axes) -> DataSet:
    """The data set in a file, held against the model's signature.

    Raises:
        Unusable: it is none, is too large, or does not fit.
    """
    arrays = _arrays(path.read_bytes())
    inputs = {spec.name: _fitted(spec, arrays, axes[spec.name]) for spec in signature.inputs}
    rows = {len(array) for array in inputs.values()}
    if len(rows) != 1 or 0 in rows:
        raise Unusable(f"its inputs have {sorted(rows)} rows: all must have as many, and at least one")
    [count] = rows
    targets = {spec.name: arrays[spec.name] for spec in signature.outputs if spec.name in arrays}
    label = arrays.get(LABEL)
    for name, array in ((LABEL, label), *targets.items()):
        if array is not None and (array.ndim == 0 or len(array) != count):
            raise Unusable(f"{name!r} has not one entry for each of the {count} rows")
    return DataSet(inputs, None if label is None else _classes(label), targets)


def _arrays(content: bytes) -> dict[str, Array]:
    if content.startswith(_ZIP):
        return _npz(content)
    if content.startswith(_PARQUET):
        return _parquet(content)
    raise Unusable("it is neither a NumPy .npz nor a Parquet file")


def _npz(content: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            _bounded(len(members), sum(member.file_size for member in members))
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, KeyError) as err:
        raise Unusable(f"NumPy does not read it: {str(err)[:300]}") from err


def _parquet(content: bytes) -> dict[str, Array]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - heavy, and most data sets are .npz
    except ImportError as err:
        raise Unusable("this optimizer has no reader for Parquet: send a NumPy .npz") from err
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
        _bounded(file.metadata.num_columns, sum(group.total_byte_size for group in groups))
        table = file.read()
        return {name: _column(table.column(name).combine_chunks(), table.num_rows) for name in table.column_names}
    except (ArrowException, OSError, ValueError, TypeError) as err:
        raise Unusable(f"Arrow does not read it: {str(err)[:300]}") from err


def _column(column: Any, rows: int) -> Array:
    """Numbers of a column, [rows] or [rows, numbers in a row]."""
    values = column
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False)
    return np.asarray(flat if values is column else flat.reshape(rows, -1))


def _bounded(arrays: int, byte_size: int) -> None:
    if arrays > _MAX_ARRAYS or byte_size > MAX_BYTES:
        raise Unusable(f"{arrays} arrays of {byte_size} bytes; {_MAX_ARRAYS} of {MAX_BYTES} bytes are allowed")


def _fitted(spec: TensorSpec, arrays: Mapping[str, Array], axis: int | None) -> Array:
    """The input's array, in its datatype and with rows in its shape."""
    found = arrays.get(spec.name)
    if found is None:
        raise Unusable(f"it has no array {spec.name!r}, only {', '.join(map(repr, sorted(arrays)[:20]))}")
    shape = [dim for place, dim in enumerate(spec.shape) if place != axis]
    if found.ndim == 2 and len(shape) != 1 and all(isinstance(dim, int) and dim > 0 for dim in shape):  # noqa: PLR2004 - flat rows
        found = _reshaped(spec.name, found, [int(dim) for dim in shape])
    if found.ndim != len(shape) + 1 or not all(map(_fits, shape, found.shape[1:])):
        raise Unusable(f"array {spec.name!r} has shape {list(found.shape)}, and the model takes rows of {shape}")
    dtype = DTYPES[spec.datatype]
    if found.dtype != dtype and not (found.dtype.kind in "biuf" and dtype.kind in "biuf"):
        raise Unusable(f"array {spec.name!r} is of {found.dtype}, and the model takes {spec.datatype}")
    return found.astype(object if spec.datatype == "BYTES" else dtype, copy=False)


def _reshaped(name: str, found: Array, shape: Sequence[int]) -> Array:
    if found.shape[1] != np.prod(shape, dtype=np.int64):
        raise Unusable(f"array {name!r} has {found.shape[1]} numbers a row, and the model takes rows of {list(shape)}")
    return found.reshape(len(found), *shape)


def _fits(dim: object, size: int) -> bool:
    return isinstance(dim, str) or dim in (-1, size)


def _classes(label: Array) -> Array:
    flat = label.reshape(len(label), -1)
    if flat.shape[1] != 1 or label.dtype.kind not in "iu":
        raise Unusable(f"{LABEL!r} must be one whole number a row, not {label.dtype}{list(label.shape)}")
    return flat[:, 0].astype(np.int64)
