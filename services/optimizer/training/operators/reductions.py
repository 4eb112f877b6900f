"""Operators over whole axes: sums, means, extremes, norms, softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from services.optimizer.training.operators.call import Call, Operator

    Reduction = Callable[[Tensor, list[int], bool], Tensor]

_SOFTMAX_OVER_ONE_AXIS: Final = 13
"""Up to opset 12 softmax went over all axes from `axis` on, by default from the second."""


def _reduction(function: Reduction) -> Operator:
    def compute(call: Call) -> Tensor:
        tensor, axes = call.tensor(0), call.integers(1, "axes")
        if not axes and call.get("noop_with_empty_axes", 0):
            return function(tensor.unsqueeze(-1), [-1], False)  # of each number alone
        return function(tensor, axes or list(range(tensor.dim())), bool(call.get("keepdims", 1)))

    return compute


def _product(tensor: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % tensor.dim() for axis in axes), reverse=True):
        tensor = tensor.prod(axis, keepdim=keep)
    return tensor


def _index(function: Callable[..., Tensor]) -> Operator:
    def compute(call: Call) -> Tensor:
        if call.get("select_last_index", 0):
            raise call.unsupported("of the last index")
        return function(call.tensor(0), dim=call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))

    return compute


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def compute(call: Call) -> Tensor:
        tensor = call.tensor(0)
        if call.opset >= _SOFTMAX_OVER_ONE_AXIS:
            return function(tensor, dim=call.get("axis", -1))
        axis = call.get("axis", 1) % tensor.dim()
        flat = tensor.reshape(*tensor.shape[:axis], -1)
        return function(flat, dim=-1).reshape(tensor.shape)

    return compute


REDUCTIONS: Final[Mapping[str, Operator]] = {
    "ArgMax": _index(torch.argmax),
    "ArgMin": _index(torch.argmin),
    "LogSoftmax": _softmax(functional.log_softmax),
    "ReduceL1": _reduction(lambda tensor, axes, keep: tensor.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda tensor, axes, keep: torch.linalg.vector_norm(tensor, dim=axes, keepdim=keep)),
    "ReduceLogSumExp": _reduction(lambda tensor, axes, keep: torch.logsumexp(tensor, axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda tensor, axes, keep: tensor.amax(axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda tensor, axes, keep: tensor.mean(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda tensor, axes, keep: tensor.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda tensor, axes, keep: tensor.sum(axes, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda tensor, axes, keep: tensor.square().sum(axes, keepdim=keep)),
    "Softmax": _softmax(functional.softmax),
}
