"""Fresh weights for a graph, drawn as their place in it asks for: what a new network of that form would begin with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from services.optimizer.training.graph import Network
from services.optimizer.training.weights import array_of, replaced

if TYPE_CHECKING:
    from onnx import ModelProto

    from services.optimizer.training.graph import Step
    from services.optimizer.training.weights import Array

_KERNEL, _MATRIX = 1, 2
_NORMS: Final = ("BatchNormalization", "InstanceNormalization", "LayerNormalization")
_NORM_VALUES: Final = (None, 1.0, 0.0, 0.0, 1.0)
"""Scale, offset, and what BatchNormalization has beside them: mean and variance."""


def reinitialised(model: ModelProto, seed: int) -> ModelProto:
    """The model with fresh weights.

    Matrices and kernels are drawn evenly, with the variance 1 / inputs (LeCun's), embeddings and other tables as widely
    as they were; norms begin as the identity and biases as 0.
    """
    generator = np.random.default_rng(seed)
    network = Network(model)
    initializers = {tensor.name: array_of(tensor) for tensor in model.graph.initializer}
    fresh: dict[str, Array] = {}
    for step in network.steps:
        for index, name in enumerate(step.inputs):
            if name in fresh or name not in initializers:
                continue
            if step.operator in _NORMS and index:
                fresh[name] = np.full_like(initializers[name], _NORM_VALUES[index])
            elif name in network.names:
                fresh[name] = _drawn(step, index, initializers[name], generator)
    return replaced(model, fresh)


def uniform(shape: tuple[int, ...], inputs: int, generator: np.random.Generator, dtype: np.dtype[np.generic]) -> Array:
    """Numbers of variance 1 / inputs."""
    bound = math.sqrt(3 / max(1, inputs))
    return generator.uniform(-bound, bound, shape).astype(dtype)


def _drawn(step: Step, index: int, old: Array, generator: np.random.Generator) -> Array:
    inputs = fan_in(step, index, old.shape)
    if inputs is not None:
        return uniform(old.shape, inputs, generator, old.dtype)
    if old.ndim < _MATRIX:
        return np.zeros_like(old)
    drawn: Array = generator.standard_normal(old.shape) * old.std()
    return drawn.astype(old.dtype)


def fan_in(step: Step, index: int, shape: tuple[int, ...]) -> int | None:
    """How many numbers one number of the output is made of; None if the tensor is no matrix or kernel there."""
    if len(shape) < _MATRIX:
        return None
    if step.operator == "Conv" and index == _KERNEL:
        return math.prod(shape[1:])
    if step.operator == "ConvTranspose" and index == _KERNEL:
        return shape[0] * math.prod(shape[2:])
    if step.operator == "Gemm" and index == _KERNEL:
        return shape[1] if step.attributes.get("transB", 0) else shape[0]
    if step.operator == "MatMul":
        return shape[-2] if index == _KERNEL else shape[-1]
    return None
