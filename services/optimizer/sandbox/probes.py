"""Inputs to try a model on.

A `Setting` says how large the free dimensions are and which whole numbers are safe (an index must lie within its
table; the file does not say how long that is, so `batching` tries). From it come rows: feeds with one row each, which
`stack` puts together along the batch axes. An input without a batch axis has one value, the same in all rows.

Rows come in two kinds. *Plain* rows look like data: normal numbers, whole numbers of mixed magnitudes. *Extreme* rows
are the worst neighbours one can have: huge, zero, largest index, not a number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from shared.tensors import DTYPES, bf16_bits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.optimizer.sandbox.engine import Feeds
    from shared.signature import Signature, TensorSpec
    from shared.tensors import Array

HUGE: Final = 1e4
"""Far outside of normal data, yet within FP16 and far from overflow in a sum."""
HIGHS: Final = (1, 127, 255, 1000, 30_000)
"""Upper ends of whole numbers to try: flags, signed and unsigned bytes, labels, vocabularies."""
EXTREMES: Final = 4
"""Kinds of extreme rows: all huge, all huge and negative, zero, not a number."""

Axes = dict[str, "int | None"]
"""The batch axis of each tensor by name, None for a tensor that has none."""


@dataclass(frozen=True)
class Setting:
    """Sizes of free dimensions by `key`, batch dimensions being 1, and the largest safe whole number by input."""

    sizes: Mapping[str, int]
    highs: Mapping[str, int] = field(default_factory=dict)


def key(spec: TensorSpec, axis: int) -> str | None:
    """What a free dimension is known by: its name, else its place; None if it is fixed."""
    dim = spec.shape[axis]
    if isinstance(dim, str):
        return dim
    return f"{spec.name}[{axis}]" if dim == -1 else None


class Rows:
    """Makes rows of a model for one setting. All randomness comes from the seed."""

    def __init__(self, signature: Signature, setting: Setting, axes: Axes, seed: int) -> None:
        self._specs = signature.inputs
        self._setting = setting
        self._random = np.random.default_rng(seed)
        self._axes = axes
        self._common = {spec.name: self._plain(spec) for spec in self._specs if axes[spec.name] is None}

    def plain(self, count: int) -> list[Feeds]:
        """Rows that look like data."""
        return [self._row([self._plain(spec) for spec in self._specs]) for _ in range(count)]

    def extreme(self) -> list[Feeds]:
        """One row of each extreme kind."""
        return [self._row([self._extreme(spec, kind) for spec in self._specs]) for kind in range(EXTREMES)]

    def highest(self, name: str, high: int) -> Feeds:
        """A row in which input `name` has nothing but `high`."""
        row = self.plain(1)[0]
        row[name] = np.full_like(row[name], high)
        return row

    def _row(self, arrays: Sequence[Array]) -> Feeds:
        return {spec.name: array for spec, array in zip(self._specs, arrays, strict=True)} | self._common

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        dims = ((dim, key(spec, axis)) for axis, dim in enumerate(spec.shape))
        return tuple(int(dim) if name is None else self._setting.sizes[name] for dim, name in dims)

    def _plain(self, spec: TensorSpec) -> Array:
        shape, dtype = self._shape(spec), DTYPES[spec.datatype]
        if spec.datatype == "BYTES":
            lengths = self._random.integers(1, 12, shape)
            texts: Array = np.vectorize(self._text, otypes=[object])(lengths)
            return texts
        if spec.datatype == "BF16":
            return bf16_bits(self._random.standard_normal(shape))
        if dtype.kind == "b":
            return self._random.integers(0, 2, shape).astype(np.bool_)
        if dtype.kind in "iu":
            allowed = [high for high in HIGHS if 1 < high <= self._setting.highs.get(spec.name, 1)] or [1]
            return self._random.integers(0, int(self._random.choice(allowed)), shape, endpoint=True).astype(dtype)
        return self._random.standard_normal(shape).astype(dtype)

    def _extreme(self, spec: TensorSpec, kind: int) -> Array:
        shape, dtype = self._shape(spec), DTYPES[spec.datatype]
        number = (HUGE, -HUGE, 0.0, float("nan"))[kind]
        if spec.datatype == "BYTES":
            return np.full(shape, "" if kind == 2 else "\N{SNOWMAN}" * 100, dtype=object)  # noqa: PLR2004 - zero
        if spec.datatype == "BF16":
            return bf16_bits(np.full(shape, number))
        if dtype.kind in "biu":
            return np.full(shape, 0 if kind >= 2 else self._setting.highs.get(spec.name, 1)).astype(dtype)  # noqa: PLR2004
        return np.full(shape, number, dtype)

    def _text(self, length: int) -> str:
        return "".join(map(chr, self._random.integers(97, 123, length)))


def stack(rows: Sequence[Feeds], axes: Axes) -> Feeds:
    """One batch of the rows, in order."""
    first = rows[0]
    return {
        name: first[name] if axis is None else np.concatenate([row[name] for row in rows], axis=axis)
        for name, axis in ((name, axes[name]) for name in first)
    }


def pick(outputs: Sequence[Array], axes: Sequence[int], row: int) -> list[Array]:
    """The outputs of one row of a batch, with their batch axis kept at size 1."""
    return [np.take(output, [row], axis=axis) for output, axis in zip(outputs, axes, strict=True)]
