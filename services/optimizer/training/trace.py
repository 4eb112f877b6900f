"""A graph seen running: the shape of every value at two sizes of the free dimensions.

An axis that has the same size both times is *fixed*; structures are made of fixed axes alone. What the graph computes
with shapes is seen too, as the whole numbers that came out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper

from services.optimizer.training.errors import NotPrunable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto

    from services.optimizer.training.graph import Network
    from services.optimizer.training.weights import Array

    Feeds = Mapping[str, Array]

_ROWS: Final = (2, 3)
_OTHERS: Final = ((5, 7), (32, 48), (64, 96), (128, 160), (224, 256), (512, 640))
"""Sizes of other free dimensions that are tried: sequences, images."""
_MAX_KEPT: Final = 64
"""Numbers of a value that are remembered: shapes and indices, not tables."""


@dataclass(frozen=True)
class Trace:
    """Two runs. Names are those of the file's values, initializers among them."""

    shapes: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]
    whole: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]
    """Values of small tensors of whole numbers, flat."""

    def rank(self, name: str) -> int:
        """The number of a value's axes."""
        return len(self.shapes[0][name])

    def both(self, name: str) -> list[tuple[int, int]]:
        """The sizes of each axis in the first and in the second run."""
        return list(zip(self.shapes[0][name], self.shapes[1][name], strict=True))

    def size(self, name: str, axis: int) -> int | None:
        """The size of a fixed axis, None if it is free."""
        first, second = self.shapes[0][name][axis], self.shapes[1][name][axis]
        return first if first == second else None

    def constant(self, name: str) -> tuple[int, ...] | None:
        """The whole numbers in a value, if they are the same both times."""
        first, second = self.whole[0].get(name), self.whole[1].get(name)
        return first if first == second else None


def trace(network: Network, feeds: Sequence[Feeds]) -> Trace:
    """Run the graph on two feeds.

    Raises:
        NotPrunable: ranks differ between the runs.
    """
    runs = [_seen(network, each) for each in feeds]
    first, second = runs
    if any(len(shape) != len(second[0].get(name, ())) for name, shape in first[0].items()):
        raise NotPrunable("The number of axes changes with the size of the input")
    return Trace((first[0], second[0]), (first[1], second[1]))


def _seen(network: Network, feeds: Feeds) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    values = network.trace(feeds)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    whole = {
        name: tuple(int(number) for number in value.reshape(-1).tolist())
        for name, value in values.items()
        if not value.is_floating_point() and value.numel() <= _MAX_KEPT
    }
    return shapes, whole


def example_feeds(model: ModelProto, network: Network) -> tuple[Feeds, Feeds]:
    """Two feeds of different sizes that the graph runs on.

    Raises:
        NotPrunable: none of the sizes tried works; the last failure says why.
    """
    failure: Exception | None = None
    for others in _OTHERS:
        feeds = tuple(_feeds(model, network, rows, other) for rows, other in zip(_ROWS, others, strict=True))
        try:
            for each in feeds:
                network.predict(each)
        except Exception as err:  # noqa: BLE001 - kernels raise what they like at a size that does not fit
            failure = err
        else:
            return feeds[0], feeds[1]
    raise NotPrunable(f"The graph ran on no size that was tried: {failure}") from failure


def _feeds(model: ModelProto, network: Network, rows: int, other: int) -> Feeds:
    generator = np.random.default_rng(0)
    return {
        value.name: _example(value.type.tensor_type, rows, other, generator)
        for value in model.graph.input
        if value.name in network.inputs
    }


def _example(about: Any, rows: int, other: int, generator: np.random.Generator) -> Array:
    """Numbers around 0; of whole ones 0 and 1, which any table has."""
    shape = [
        dim.dim_value if dim.HasField("dim_value") else (other if axis else rows)
        for axis, dim in enumerate(about.shape.dim)
    ]
    dtype = helper.tensor_dtype_to_np_dtype(about.elem_type)
    if about.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)
