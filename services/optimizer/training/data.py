"""Rows to train on: arrays by input, and what the model should answer. Rows lie along the first axis of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import helper

from services.optimizer.training.errors import InvalidData

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx import ModelProto

    from services.optimizer.training.weights import Array

_EVALUATED_ROWS: Final = 256


@dataclass(frozen=True)
class Rows:
    """`targets` are labels (whole numbers), numbers, or the answers of a teacher.

    Raises:
        InvalidData: there are no rows, not equally many everywhere, or they hold what is not a finite number.
    """

    inputs: Mapping[str, Array]
    targets: Array

    def __post_init__(self) -> None:
        arrays = {**self.inputs, "targets": self.targets}
        counts = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
        if len(set(counts.values())) != 1 or not len(self):
            raise InvalidData(f"Rows differ in number, or there are none: {counts}")
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
                raise InvalidData(f"{name!r} holds something else than finite numbers")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def labelled(self) -> bool:
        """Whether the targets are classes."""
        return self.targets.dtype.kind in "iub"

    def take(self, rows: Array) -> Rows:
        """The rows of these indices."""
        return Rows({name: array[rows] for name, array in self.inputs.items()}, self.targets[rows])

    def split(self, held_out: float, seed: int) -> tuple[Rows, Rows | None]:
        """Those to train on and those held out: drawn by the seed, every class in its share."""
        if not held_out:
            return self, None
        order = np.random.default_rng(seed).permutation(len(self))
        if self.labelled and self.targets.ndim == 1:
            order = order[np.argsort(self.targets[order], kind="stable")]
        whole = np.floor(np.arange(len(self) + 1) * held_out + 0.5)
        held = np.diff(whole) > 0
        if not held.any() or held.all():
            raise InvalidData(f"held_out={held_out:g} of {len(self)} rows leaves one part empty")
        return self.take(order[~held]), self.take(order[held])

    def batches(self, rows: int, seed: tuple[int, int], *, whole: bool) -> Iterator[Rows]:
        """All rows in another order for each seed; `whole`: a last batch with fewer rows is left out."""
        order = np.random.default_rng(seed).permutation(len(self))
        for start in range(0, len(self), rows):
            if not whole or start + rows <= len(self):
                yield self.take(order[start : start + rows])

    def slices(self, rows: int | None) -> Iterator[Rows]:
        """All rows in order; `rows` at a time if the model takes no other number."""
        size = rows or _EVALUATED_ROWS
        for start in range(0, len(self), size):
            if rows is None or start + rows <= len(self):
                yield self.take(np.arange(start, min(start + size, len(self))))


def fitted(rows: Rows, model: ModelProto) -> Rows:
    """The rows with the model's inputs in its datatypes, and no others.

    Raises:
        InvalidData: an input is missing, or is of another kind.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        if value.name not in rows.inputs:
            raise InvalidData(f"Input {value.name!r} is missing")
        array = rows.inputs[value.name]
        wanted = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise InvalidData(f"Input {value.name!r} is {array.dtype}, and the model takes {wanted}")
        inputs[value.name] = array.astype(wanted)
    return Rows(inputs, rows.targets)


def fixed_rows(model: ModelProto) -> int | None:
    """How many rows the model takes at once, if its file allows one number only."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        shape = value.type.tensor_type.shape.dim
        if value.name not in constants and shape and shape[0].HasField("dim_value"):
            return int(shape[0].dim_value)
    return None
