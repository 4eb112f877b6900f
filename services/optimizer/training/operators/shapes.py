"""Operators that move elements, or compute with shapes."""

from __future__ import annotations

from itertools import accumulate, chain, pairwise
from math import prod
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from services.optimizer.training.operators.call import Call, Operator


_FAR: Final = 2**31 - 1
"""Exporters write the largest and smallest integers of 32 or 64 bits for open ends of slices."""


def _concat(call: Call) -> Tensor:
    return torch.cat([call.tensor(index) for index in range(len(call.inputs))], call.attributes["axis"])


def _constant(call: Call) -> Tensor:
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in call.attributes:
            dtype = torch.float32 if "float" in name else torch.int64
            return torch.tensor(call.attributes[name], dtype=dtype)
    if "value" not in call.attributes:
        raise call.unsupported(f"of {', '.join(sorted(call.attributes))}")
    return torch.from_numpy(call.attributes["value"].copy())


def _constant_of_shape(call: Call) -> Tensor:
    shape = call.integers(0, "") or []
    if "value" not in call.attributes:
        return torch.zeros(shape, dtype=torch.float32)
    value = torch.from_numpy(call.attributes["value"].copy())
    return value.reshape(()).expand(shape).clone()


def _expand(call: Call) -> Tensor:
    """Both ways: a size of 1 in either gives way to the other's."""
    tensor, shape = call.tensor(0), call.integers(1, "") or []
    rank = max(tensor.dim(), len(shape))
    have, want = ([1] * (rank - len(sizes)) + sizes for sizes in (list(tensor.shape), shape))
    return tensor.expand([asked if size == 1 else size for size, asked in zip(have, want, strict=True)])


def _flatten(call: Call) -> Tensor:
    tensor = call.tensor(0)
    axis = call.get("axis", 1)
    axis = axis + tensor.dim() if axis < 0 else axis
    return tensor.reshape(prod(tensor.shape[:axis]), -1)


def _gather(call: Call) -> Tensor:
    data, indices = call.tensor(0), call.tensor(1).long()
    axis = call.get("axis", 0) % data.dim()
    indices = torch.where(indices < 0, indices + data.shape[axis], indices)
    taken = data.index_select(axis, indices.reshape(-1))
    return taken.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


def _pad(call: Call) -> Tensor:
    tensor, pads, value = call.tensor(0), call.integers(1, "pads") or [], call.numbers(2)
    axes = call.integers(3, "axes")
    axes = list(range(tensor.dim())) if axes is None else [axis % tensor.dim() for axis in axes]
    around = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    mode = call.get("mode", "constant")
    if mode == "constant":
        pairs = [around.get(axis, (0, 0)) for axis in reversed(range(tensor.dim()))]
        return functional.pad(tensor, list(chain(*pairs)), value=value[0] if value else call.get("value", 0.0))
    if mode not in _SOURCES:
        raise call.unsupported(f"mode {mode}")
    for axis, (begin, end) in around.items():
        size = tensor.shape[axis]
        sources = _SOURCES[mode](torch.arange(-begin, size + end), size)
        tensor = tensor.index_select(axis, sources) if begin or end else tensor
    return tensor


def _reflected(places: Tensor, size: int) -> Tensor:
    turned = places.remainder(max(1, 2 * (size - 1)))
    return torch.minimum(turned, (2 * (size - 1) - turned).clamp_min(0))


_SOURCES: Final[Mapping[str, Callable[[Tensor, int], Tensor]]] = {
    "edge": lambda places, size: places.clamp(0, size - 1),
    "reflect": _reflected,
    "wrap": lambda places, size: places.remainder(size),
}
"""Where a place around a tensor takes its element from."""


def _range(call: Call) -> Tensor:
    start, limit, delta = (
        known.values[0] if (known := call.of_known(index)) is not None else call.tensor(index).reshape(()).item()
        for index in range(3)
    )
    return torch.arange(start, limit, delta, dtype=call.tensor(0).dtype)


def _reshape(call: Call) -> Tensor:
    tensor, wanted = call.tensor(0), call.integers(1, "shape") or []
    if not call.get("allowzero", 0):
        wanted = [tensor.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return tensor.reshape(wanted)


def _shape(call: Call) -> Tensor:
    shape = list(call.tensor(0).shape)
    return torch.tensor(shape[call.get("start", 0) : call.get("end", len(shape))], dtype=torch.int64)


def _slice(call: Call) -> Tensor:
    tensor = call.tensor(0)
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes = call.integers(3, "axes") or list(range(len(starts)))
    steps = call.integers(4, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step > 0:
            before = (slice(None),) * (axis % tensor.dim())
            tensor = tensor[(*before, slice(_bound(start), _bound(end), step))]  # ends far out are the ends, as in ONNX
        else:
            first, last, stride = slice(start, end, step).indices(tensor.shape[axis])
            taken = range(first, last, stride)
            tensor = tensor.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return tensor


def _bound(place: int) -> int:
    """An end of a slice, no further out than torch takes it."""
    return max(-_FAR, min(_FAR, place)) if isinstance(place, int) else place


def _split(call: Call) -> tuple[Tensor, ...]:
    tensor, sizes, axis = call.tensor(0), call.integers(1, "split"), call.get("axis", 0)
    if sizes is None:
        whole, parts = tensor.shape[axis], call.get("num_outputs", call.outputs)
        size = -(-whole // parts)
        sizes = [min(size, max(0, whole - part * size)) for part in range(parts)]
    ends = accumulate(sizes, initial=0)
    return tuple(tensor.narrow(axis, start, end - start) for start, end in pairwise(ends))


def _squeeze(call: Call) -> Tensor:
    tensor, axes = call.tensor(0), call.integers(1, "axes")
    if axes is None:
        return tensor.squeeze()
    gone = {axis % tensor.dim() for axis in axes}
    return tensor.reshape([size for axis, size in enumerate(tensor.shape) if axis not in gone])


def _tile(call: Call) -> Tensor:
    return call.tensor(0).repeat(call.integers(1, "") or [])


def _transpose(call: Call) -> Tensor:
    tensor = call.tensor(0)
    return tensor.permute(call.get("perm", list(reversed(range(tensor.dim())))))


def _trilu(call: Call) -> Tensor:
    diagonal = call.optional(1)
    offset = 0 if diagonal is None else int(diagonal)
    return (torch.triu if call.get("upper", 1) else torch.tril)(call.tensor(0), offset)


def _unsqueeze(call: Call) -> Tensor:
    tensor, axes = call.tensor(0), call.integers(1, "axes") or []
    rank = tensor.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        tensor = tensor.unsqueeze(axis)
    return tensor


SHAPES: Final[Mapping[str, Operator]] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda call: torch.tensor(call.tensor(0).numel()),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
