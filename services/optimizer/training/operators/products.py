"""Matrix products, and the normalizations that follow them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from services.optimizer.training.operators.call import Call, Operator


def _gemm(call: Call) -> Tensor:
    left = call.tensor(0).t() if call.get("transA", 0) else call.tensor(0)
    right = call.tensor(1).t() if call.get("transB", 0) else call.tensor(1)
    product, bias = left @ right, call.optional(2)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = product if alpha == 1.0 else product * alpha
    return product if bias is None else product + (bias if beta == 1.0 else bias * beta)


def _batch_normalization(call: Call) -> Tensor:
    """With the statistics that the file holds, in training too."""
    if call.get("training_mode", 0):
        raise call.unsupported("in training mode")
    tensor, scale, bias, mean, variance = (call.tensor(index) for index in range(5))
    return functional.batch_norm(tensor, mean, variance, scale, bias, eps=call.get("epsilon", 1e-5))


def _instance_normalization(call: Call) -> Tensor:
    return functional.instance_norm(
        call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=call.get("epsilon", 1e-5)
    )


def _layer_normalization(call: Call) -> Tensor:
    tensor, scale, bias = call.tensor(0), call.tensor(1), call.optional(2)
    shape = list(tensor.shape[call.get("axis", -1) % tensor.dim() :])
    normal = functional.layer_norm(tensor, shape, eps=call.get("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


PRODUCTS: Final[Mapping[str, Operator]] = {
    "BatchNormalization": _batch_normalization,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "MatMul": lambda call: torch.matmul(call.tensor(0), call.tensor(1)),
}
