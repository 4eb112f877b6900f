"""Small whole numbers that are known while a graph is exported: sizes, axes, and what is computed from them.

Exporting runs a graph on tensors without values, whose sizes may be symbols. Shapes that the graph computes itself
(`Shape`, `Gather`, `Concat`, …, then `Reshape`) would be lost there, so they are kept beside the tensors as Python
numbers or symbols, and nodes that compute with nothing else are computed on these. What is not known is a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    _Function = Callable[[Mapping[str, Any], list["Known"]], "Known | None"]

_MOST: Final = 64
"""Elements: shapes are short."""
_WHOLE: Final = frozenset({torch.int64, torch.int32, torch.bool})


@dataclass(frozen=True)
class Known:
    """A tensor of rank 0 or 1 by its values: `int`, `bool`, symbols of torch, or, while traced, tensors of rank 0."""

    values: tuple[Any, ...]
    rank: int
    dtype: torch.dtype = torch.int64

    @classmethod
    def of(cls, tensor: Tensor) -> Known | None:
        """The values of a constant; None if it is none of these."""
        if tensor.dtype not in _WHOLE or tensor.dim() > 1 or tensor.numel() > _MOST:
            return None
        return cls(tuple(tensor.reshape(-1).tolist()), tensor.dim(), tensor.dtype)

    def tensor(self) -> Tensor:
        """As a tensor, computed from sizes where it holds symbols."""
        if all(isinstance(value, int) for value in self.values):
            flat = torch.tensor(self.values, dtype=self.dtype)
        else:
            flat = torch.stack([_scalar(value, self.dtype) for value in self.values])
        return flat if self.rank else flat.reshape(())


def _scalar(value: Any, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if isinstance(value, torch.Tensor) else torch.scalar_tensor(value, dtype=dtype)


def computed(operator: str, attributes: Mapping[str, Any], inputs: Sequence[Known | None]) -> Known | None:
    """What a node gives whose inputs are all known; None if that is not computed here."""
    function = _OPERATORS.get(operator)
    if function is None or any(known is None for known in inputs):
        return None
    return function(attributes, [known for known in inputs if known is not None])


def shape_of(tensor: Tensor, attributes: Mapping[str, Any]) -> Known:
    """What `Shape` gives."""
    sizes = tuple(tensor.shape)
    return Known(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))], 1)


def _elementwise(function: Callable[..., Any], dtype: torch.dtype | None = None) -> _Function:
    def compute(_attributes: Mapping[str, Any], inputs: list[Known]) -> Known | None:
        length = max(len(known.values) for known in inputs)
        if any(len(known.values) not in (1, length) for known in inputs):
            return None
        columns = [known.values * (1 if len(known.values) == length else length) for known in inputs]
        values = tuple(function(*row) for row in zip(*columns, strict=True))
        return Known(values, max(known.rank for known in inputs), dtype or inputs[-1].dtype)

    return compute


def _divided(left: Any, right: Any) -> Any:
    """Towards zero; sizes are not negative."""
    if isinstance(left, int) and isinstance(right, int) and (left < 0) != (right < 0):
        return -(-left // right)
    return left // right


def _cast(attributes: Mapping[str, Any], inputs: list[Known]) -> Known | None:
    dtype = {6: torch.int32, 7: torch.int64}.get(attributes.get("to", 0))  # TensorProto.INT32 and INT64
    return (
        None
        if dtype is None
        else Known(tuple(int(v) if isinstance(v, bool) else v for v in inputs[0].values), inputs[0].rank, dtype)
    )


def _concat(_attributes: Mapping[str, Any], inputs: list[Known]) -> Known:
    return Known(tuple(value for known in inputs for value in known.values), 1, inputs[0].dtype)


def _constant_of_shape(attributes: Mapping[str, Any], inputs: list[Known]) -> Known | None:
    value = attributes.get("value")
    [*sizes] = inputs[0].values
    if value is None or value.dtype.kind not in "iu" or value.size != 1:
        return None
    if len(sizes) != 1 or not isinstance(sizes[0], int) or sizes[0] > _MOST:
        return None
    return Known((int(value.reshape(-1)[0]),) * sizes[0], 1)


def _gather(attributes: Mapping[str, Any], inputs: list[Known]) -> Known | None:
    data, indices = inputs
    if attributes.get("axis", 0) != 0 or data.rank != 1:
        return None
    return Known(tuple(data.values[index] for index in indices.values), indices.rank, data.dtype)


def _slice(_attributes: Mapping[str, Any], inputs: list[Known]) -> Known | None:
    data, starts, ends, *rest = inputs
    step = rest[1].values[0] if len(rest) > 1 else 1
    bounds = (starts.values[0], ends.values[0], step)
    if data.rank != 1 or len(starts.values) != 1 or not all(isinstance(bound, int) for bound in bounds):
        return None
    return Known(data.values[slice(*bounds)], 1, data.dtype)


def _ranked(rank: int) -> _Function:
    def compute(_attributes: Mapping[str, Any], inputs: list[Known]) -> Known | None:
        return Known(inputs[0].values, rank, inputs[0].dtype) if len(inputs[0].values) == 1 else None

    return compute


def _product(attributes: Mapping[str, Any], inputs: list[Known]) -> Known:
    return Known((math.prod(inputs[0].values),), int(bool(attributes.get("keepdims", 1))), inputs[0].dtype)


_OPERATORS: Final[Mapping[str, _Function]] = {
    "Add": _elementwise(lambda left, right: left + right),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(_divided),
    "Equal": _elementwise(lambda left, right: bool(left == right), torch.bool),
    "Gather": _gather,
    "Identity": lambda _, inputs: inputs[0],
    "Mul": _elementwise(lambda left, right: left * right),
    "ReduceProd": _product,
    "Slice": _slice,
    "Squeeze": _ranked(0),
    "Sub": _elementwise(lambda left, right: left - right),
    "Unsqueeze": _ranked(1),
    "Where": _elementwise(lambda condition, left, right: left if condition else right),
}
