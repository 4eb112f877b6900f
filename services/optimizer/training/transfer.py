"""Transfer: a model begins with what another has learned, and with a head of its own.

Warm start copies initializers where name and shape match; the rest stays. The new head stands in place of the last
product before the output, and begins at 0: it knows nothing yet, and what it does not know must not pull at what the
layers below have learned. Whether the rest is frozen is the training's choice (`Training.train` with `exactly`).

What was trained long generalizes worse from there than what is new, if there are few rows. `softened` mends that: it
shrinks the weights and adds fresh ones ("shrink and perturb", https://arxiv.org/abs/1910.08475). Figures are in
docs/training.md.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from services.optimizer.training.errors import InvalidConfig, NoHead
from services.optimizer.training.graph import Network
from services.optimizer.training.initial import reinitialised
from services.optimizer.training.weights import floats, replaced

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import ModelProto

    from services.optimizer.training.graph import Step
    from services.optimizer.training.weights import Array

_THROUGH: Final = frozenset({"Identity", "LogSoftmax", "Sigmoid", "Softmax"})
_MAX_CLASSES: Final = 1_000_000


@dataclass(frozen=True)
class Warm:
    """The model with another's weights: the names of those that were copied, and of those that were not."""

    model: ModelProto
    copied: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Headed:
    """The model with a new head: the names of its weights, the matrix first."""

    model: ModelProto
    head: tuple[str, ...]


def warm_start(model: ModelProto, source: ModelProto) -> Warm:
    """Copy float initializers (statistics of norms among them) from the source where name and shape match."""
    theirs = floats(source)
    fitting = {
        name: theirs[name]
        for name, array in floats(model).items()
        if name in theirs and theirs[name].shape == array.shape and theirs[name].dtype == array.dtype
    }
    kept = tuple(name for name in floats(model) if name not in fitting)
    return Warm(replaced(model, fitting), tuple(fitting), kept)


def softened(model: ModelProto, keep: float, seed: int) -> ModelProto:
    """The model with weights that are `keep` of what they were and the rest of fresh ones; a head of zeros stays so.

    Raises:
        InvalidConfig: `keep` is not within 0 to 1.
    """
    if not 0 <= keep <= 1:
        raise InvalidConfig(f"keep: {keep:g} is not within 0 to 1")
    fresh, mixed = floats(reinitialised(model, seed)), Network(model).weights()
    for name, array in mixed.items():
        if array.any():
            mixed[name] = (keep * array + (1 - keep) * fresh[name]).astype(array.dtype)
    return replaced(model, mixed)


def new_head(model: ModelProto, classes: int) -> Headed:
    """Replace the last Gemm or MatMul and its bias by ones of zeros, with so many columns.

    Raises:
        InvalidConfig: `classes` is out of range.
        NoHead: the first output does not come from such a product, or its matrix serves elsewhere too.
    """
    if not 1 <= classes <= _MAX_CLASSES:
        raise InvalidConfig(f"classes: {classes} is not within 1 to {_MAX_CLASSES}")
    network = Network(model)
    product, names = _head(network)
    arrays = floats(model)
    matrix = arrays[names[0]]
    columns = 0 if product.operator == "Gemm" and product.attributes.get("transB", 0) else matrix.ndim - 1
    shape = tuple(classes if axis == columns else size for axis, size in enumerate(matrix.shape))
    fresh: dict[str, Array] = {
        names[0]: np.zeros(shape, matrix.dtype),
        **{name: np.zeros((*arrays[name].shape[:-1], classes), arrays[name].dtype) for name in names[1:]},
    }
    made = replaced(model, fresh)
    dims = made.graph.output[0].type.tensor_type.shape.dim
    if dims:
        dims[-1].dim_value = classes
    return Headed(made, names)


def exactly(names: Iterable[str]) -> tuple[str, ...]:
    """Patterns for `Training.train` that match these names and no others."""
    return tuple(glob.escape(name) for name in names)


def _head(network: Network) -> tuple[Step, tuple[str, ...]]:
    """The last product, and the names of its matrix and biases."""
    makers = {name: step for step in network.steps for name in step.outputs}
    value, biases = network.outputs[0], list[str]()
    while value in makers:
        step = makers[value]
        if step.operator in _THROUGH:
            value = step.inputs[0]
        elif step.operator == "Add" and (sides := [name for name in step.inputs if name in network.names]):
            biases += sides
            value = next(name for name in step.inputs if name not in sides)
        elif step.operator in ("Gemm", "MatMul") and step.inputs[1] in network.names:
            names = (step.inputs[1], *(name for name in step.inputs[2:] if name), *biases)
            _only_here(network, names)
            return step, names
        else:
            raise NoHead(f"The output comes from {step.operator} (node {step.node!r}), not from a product")
    raise NoHead("The output does not come from a product with a constant matrix")


def _only_here(network: Network, names: tuple[str, ...]) -> None:
    uses = [name for step in network.steps for name in step.inputs]
    shared = [name for name in names if uses.count(name) > 1 or name not in network.names]
    if shared:
        raise NoHead(f"{shared[0]!r} serves elsewhere too, or is not a weight")
