"""Operators that compute each element from the elements in the same place, after broadcasting."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Final

import torch
from onnx import TensorProto
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from services.optimizer.training.operators.call import Call, Operator

DTYPES: Final[Mapping[int, torch.dtype]] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor(0))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor(0), call.tensor(1))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call: reduce(function, [call.tensor(index) for index in range(len(call.inputs))])


def _cast(call: Call) -> Tensor:
    if call.get("to", 0) not in DTYPES:
        raise call.unsupported(f"to type {call.get('to', 0)}")
    return call.tensor(0).to(DTYPES[call.get("to", 0)])


def _clip(call: Call) -> Tensor:
    clipped = call.tensor(0)
    low, high = call.optional(1), call.optional(2)
    low = torch.as_tensor(call.get("min", None)) if low is None and "min" in call.attributes else low
    high = torch.as_tensor(call.get("max", None)) if high is None and "max" in call.attributes else high
    clipped = clipped if low is None else torch.maximum(clipped, low.to(clipped.dtype))
    return clipped if high is None else torch.minimum(clipped, high.to(clipped.dtype))


def _divide(left: Tensor, right: Tensor) -> Tensor:
    """Of integers the whole part, towards zero."""
    whole = not (left.is_floating_point() or right.is_floating_point())
    return torch.div(left, right, rounding_mode="trunc" if whole else None)


def _dropout(call: Call) -> Tensor:
    """In a graph made for inference it does nothing, and so it does here."""
    training = call.optional(2)
    if training is not None and bool(training):
        raise call.unsupported("in training mode")
    return call.tensor(0)


def _gelu(call: Call) -> Tensor:
    return functional.gelu(call.tensor(0), approximate=call.get("approximate", "none"))


def _hard_sigmoid(call: Call) -> Tensor:
    return torch.clamp(call.tensor(0) * call.get("alpha", 0.2) + call.get("beta", 0.5), 0, 1)


def _mod(call: Call) -> Tensor:
    return (torch.fmod if call.get("fmod", 0) else torch.remainder)(call.tensor(0), call.tensor(1))


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


def _where(call: Call) -> Tensor:
    return torch.where(call.tensor(0).bool(), call.tensor(1), call.tensor(2))


ELEMENTWISE: Final[Mapping[str, Operator]] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Div": _binary(_divide),
    "Dropout": _dropout,
    "Elu": lambda call: functional.elu(call.tensor(0), call.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": lambda call: call.tensor(0),
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": lambda call: functional.leaky_relu(call.tensor(0), call.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mish": _unary(functional.mish),
    "Mod": _mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": lambda call: torch.where(call.tensor(0) < 0, call.tensor(0) * call.tensor(1), call.tensor(0)),
    "Pow": _binary(_power),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(functional.relu),
    "Round": _unary(torch.round),
    "Selu": _unary(functional.selu),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Tanh": _unary(torch.tanh),
    "Where": _where,
    "Xor": _binary(torch.logical_xor),
}
"""Selu with the default constants of ONNX, which are torch's; others are refused when the graph is read."""
