"""Walking and naming the parts of a graph, its subgraphs included."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, ModelProto, NodeProto

CONTRIB_DOMAIN: Final = "com.microsoft"
_BIAS: Final = 2
"""Which of a Gemm's inputs is its bias."""


def copied(model: ModelProto) -> ModelProto:
    """A model that may be changed while the original stays."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of subgraphs after the one that holds them."""
    for node in graph.node:
        yield node
        for sub in subgraphs(node):
            yield from nodes(sub)


def subgraphs(node: NodeProto) -> Iterator[Any]:
    """The graphs in a node's attributes: branches, loop bodies."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def names(graph: GraphProto) -> set[str]:
    """All names of nodes and values that are in use."""
    return {name for node in nodes(graph) for name in (node.name, *node.input, *node.output)}


def unused(wanted: str, taken: set[str]) -> str:
    """A prefix that no name in the graph begins with."""
    while any(name.startswith(wanted) for name in taken):
        wanted = f"{wanted}_"
    return wanted


def drop_unused(graph: GraphProto, constants: set[str]) -> None:
    """Remove those of the constants that nothing names any more; one may have had other uses, in subgraphs too."""
    uses = Counter(name for node in nodes(graph) for name in node.input)
    uses.update(value.name for value in graph.output)
    uses.update(value.name for node in nodes(graph) for sub in subgraphs(node) for value in sub.output)
    kept = [tensor for tensor in graph.initializer if tensor.name not in constants or uses[tensor.name]]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def hoist_constants(graph: GraphProto) -> None:
    """Make initializers of the main graph's `Constant` nodes that hold a tensor: some exporters keep weights there."""
    kept = []
    for node in graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if value is None or value.name != "value" or not node.output[0]:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value.t)
        tensor.name = node.output[0]
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def flatten_biases(graph: GraphProto) -> None:
    """Make vectors [N] of constant biases [1, N] of Gemms: they mean the same, and quantizers know vectors alone."""
    biases = {node.input[2] for node in graph.node if node.op_type == "Gemm" and len(node.input) > _BIAS}
    others = {name for node in nodes(graph) for name in node.input[: _BIAS if node.op_type == "Gemm" else None]}
    others |= {value.name for value in (*graph.input, *graph.output)}
    for tensor in graph.initializer:
        if tensor.name in biases - others and len(tensor.dims) == 2 and tensor.dims[0] == 1:  # noqa: PLR2004 - a matrix
            del tensor.dims[0]


def name_nodes(graph: GraphProto) -> None:
    """Give nodes without a name, or with another's, one of their own: quantizers know nodes by name.

    Only the main graph's: the recipes name no others.
    """
    taken = names(graph)
    seen = {""}
    for index, node in enumerate(graph.node):
        if node.name in seen:
            node.name = unused(f"{node.op_type}_{index}", taken)
            taken.add(node.name)
        seen.add(node.name)


def operator_counts(graph: GraphProto) -> Counter[str]:
    """How many nodes there are of each operator."""
    return Counter(node.op_type for node in nodes(graph))
