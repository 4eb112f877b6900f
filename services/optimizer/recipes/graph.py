"""Walking and naming the parts of a graph, its subgraphs included."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, ModelProto, NodeProto

CONTRIB_DOMAIN: Final = "com.microsoft"


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
