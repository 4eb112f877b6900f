"""An ONNX graph as a torch module: its nodes run one after the other, and its weights are parameters.

`Network(model)` refuses at once, by name, whatever it can't run; only odd variants of known operators show in a run.
Weights are the float initializers that something computes with. Not weights, and constant in training:

- single numbers (epsilons, scales, the value that masks), except where they are a layer's only weight;
- settings (bounds of Clip, exponents, scales of Resize);
- the running statistics of BatchNormalization: it stays as it was exported, an affine function of each row alone;
- whole numbers, and floats of other widths than 32 and 64 bits.

Dropout is the identity, as in any graph made for inference. Everything runs on the CPU.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from onnx import AttributeProto, TensorProto, helper
from torch import Tensor, nn

from services.optimizer.training.errors import InvalidData, UnsupportedModel
from services.optimizer.training.operators import OPERATORS
from services.optimizer.training.operators.call import Call
from services.optimizer.training.weights import Array, array_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from onnx import GraphProto, ModelProto, NodeProto

_TRAINED: Final = (TensorProto.FLOAT, TensorProto.DOUBLE)
_SETTINGS: Final[Mapping[str, frozenset[int]]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "Pad": frozenset({1, 2, 3}),
    "Pow": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2, 3}),
}
_LAYERS: Final = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Gemm",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "PRelu",
    }
)
_ONNX: Final = ("", "ai.onnx")
_MANY_OUTPUTS: Final = frozenset({"Split"})


@dataclass(frozen=True, slots=True)
class Step:
    """A node, read: what it is called, what it takes and gives ("" for what is left out)."""

    operator: str
    node: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


class Network(nn.Module):
    """The graph of a model. Feeds and results are tensors by name; rows lie wherever the model has them.

    Raises:
        UnsupportedModel: with everything in the graph that is not interpreted.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        graph = model.graph
        self.steps = read(model)
        self.opset = max((opset.version for opset in model.opset_import if opset.domain in _ONNX), default=1)
        arrays = {tensor.name: array_of(tensor) for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in arrays)
        self.outputs = tuple(value.name for value in graph.output)
        self.names = tuple(name for name in _weights(graph, self.steps))
        self._constants = {name: _tensor(array) for name, array in arrays.items() if name not in set(self.names)}
        self._weights = nn.ParameterList([_tensor(arrays[name]) for name in self.names])
        self._last_uses = _last_uses(self.steps, {*self.outputs, *arrays})

    def parameter_by_name(self) -> dict[str, nn.Parameter]:
        """The weights under their names in the file, in its order."""
        return dict(zip(self.names, self._weights, strict=True))

    def weights(self) -> dict[str, Array]:
        """What the weights are now, for `weights.replaced`."""
        return {name: weight.detach().numpy().copy() for name, weight in self.parameter_by_name().items()}

    def forward(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs.

        Raises:
            InvalidData: an input is missing.
            UnsupportedModel: a node is a variant that is not interpreted.
        """
        values = self._begin(feeds)
        for index, _ in self._run(values):
            for name in self._last_uses[index]:
                del values[name]
        return {name: values[name] for name in self.outputs}

    @torch.no_grad()
    def trace(self, feeds: Mapping[str, Array]) -> dict[str, Tensor]:
        """Every value in the graph by name, initializers included."""
        values = self._begin({name: _tensor(array) for name, array in feeds.items()})
        for _ in self._run(values):
            pass
        return values

    @torch.no_grad()
    def predict(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs as arrays, without gradients."""
        return {
            name: value.numpy() for name, value in self({name: _tensor(array) for name, array in feeds.items()}).items()
        }

    def _begin(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InvalidData(f"Inputs missing: {', '.join(missing)}")
        given = {name: feeds[name] for name in self.inputs}
        return {**self._constants, **self.parameter_by_name(), **given}

    def _run(self, values: dict[str, Tensor]) -> Iterator[tuple[int, Step]]:
        """Compute node by node, into `values`."""
        for index, step in enumerate(self.steps):
            given = tuple(values[name] if name else None for name in step.inputs)
            call = Call(step.operator, step.node, self.opset, step.attributes, given, len(step.outputs))
            computed = OPERATORS[step.operator](call)
            results = computed if isinstance(computed, tuple) else (computed,)
            values.update(zip(step.outputs, results, strict=False))
            yield index, step


def read(model: ModelProto) -> tuple[Step, ...]:
    """The nodes of the graph.

    Raises:
        UnsupportedModel: with all that is not interpreted.
    """
    found = Counter(_unsupported(model))
    if found:
        raise UnsupportedModel(*(f"{name} ({count})" if count > 1 else name for name, count in sorted(found.items())))
    return tuple(_step(node) for node in model.graph.node)


def _unsupported(model: ModelProto) -> Iterator[str]:
    local = {(function.domain, function.name) for function in model.functions}
    if model.graph.sparse_initializer:
        yield "sparse initializers"
    for node in model.graph.node:
        label = node.op_type[:100]
        if (node.domain, node.op_type) in local:
            yield f"function {label}"
        elif node.domain not in _ONNX:
            yield f"{node.domain[:100]}.{label}"
        elif node.op_type not in OPERATORS:
            yield label
        elif node.op_type not in _MANY_OUTPUTS and any(node.output[1:]):
            yield f"{label} with {len(node.output)} outputs"


def _step(node: NodeProto) -> Step:
    attributes = {attribute.name: _value(attribute) for attribute in node.attribute}
    return Step(node.op_type, node.name or node.output[0], tuple(node.input), tuple(node.output), attributes)


def _value(attribute: AttributeProto) -> Any:
    found = helper.get_attribute_value(attribute)
    if isinstance(found, bytes):
        return found.decode("utf-8", "replace")
    return array_of(found) if isinstance(found, TensorProto) else found


def _weights(graph: GraphProto, steps: Iterable[Step]) -> Iterator[str]:
    """Names of the float initializers that are trained."""
    used: set[str] = set()
    layers: set[str] = set()
    for step in steps:
        settings = _SETTINGS.get(step.operator, frozenset())
        names = [name for index, name in enumerate(step.inputs) if index not in settings]
        used.update(names)
        layers.update(names if step.operator in _LAYERS else ())
    for tensor in graph.initializer:
        several = np.prod(tensor.dims, dtype=np.int64) > 1
        if tensor.data_type in _TRAINED and tensor.name in (used if several else layers):
            yield tensor.name


def _last_uses(steps: tuple[Step, ...], kept: set[str]) -> list[list[str]]:
    """For each step the values that nobody needs after it."""
    last = {name: index for index, step in enumerate(steps) for name in (*step.outputs, *step.inputs) if name}
    freed: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name not in kept:
            freed[index].append(name)
    return freed


def _tensor(array: Array) -> Tensor:
    """A tensor of its own memory."""
    return torch.from_numpy(np.array(array))
