"""Cutting places out of a file: initializers lose indices, and what the graph has baked in of sizes is corrected.

Baked in are the shapes of Reshape, Expand and Resize, the bounds of Slice, the parts of Split, the groups of Conv.
A node whose constants change gets its own: several may share one, and not all change alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import helper, numpy_helper

from services.optimizer.training.rules import slices
from services.optimizer.training.weights import array_of, copied, replaced

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt
    from onnx import GraphProto, ModelProto, NodeProto

    from services.optimizer.training.coupling import Axis
    from services.optimizer.training.links import Links
    from services.optimizer.training.weights import Array

    Kept = Mapping[Axis, npt.NDArray[np.bool_]]

_SHAPE_INPUTS: Final[Mapping[str, int]] = {"Reshape": 1, "Expand": 1, "Resize": 3}


class Cut:
    """A model, what was linked in it, and which places of each axis are kept."""

    def __init__(self, model: ModelProto, links: Iterable[Links], kept: Kept) -> None:
        self._model, self._links, self._kept = copied(model), list(links), kept
        self._graph: GraphProto = self._model.graph
        self._made = {tensor.name: tensor for tensor in self._graph.initializer}
        self._makers = {name: node for node in self._graph.node for name in node.output}
        self._taken = {*self._made, *self._makers, *(value.name for value in self._graph.input)}
        self._nodes: list[NodeProto] = []

    def made(self) -> ModelProto:
        """The smaller model."""
        for node, links in zip(self._graph.node, self._links, strict=True):
            self._correct(node, links)
            self._nodes.append(node)
        nodes = [_copy(node) for node in self._nodes]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._sweep()
        return replaced(self._model, {tensor.name: self._sliced(tensor) for tensor in self._graph.initializer})

    def _sliced(self, tensor: Any) -> Array:
        array = array_of(tensor)
        for axis in range(array.ndim):
            kept = self._kept.get((tensor.name, axis))
            if kept is not None:
                array = np.compress(kept, array, axis)
        return array

    def _correct(self, node: NodeProto, links: Links) -> None:
        if node.op_type in _SHAPE_INPUTS:
            self._correct_shape(node, links)
        elif node.op_type == "Slice":
            self._correct_slice(node, links)
        elif node.op_type == "Split":
            self._correct_split(node, links)
        elif node.op_type in ("Conv", "ConvTranspose"):
            self._correct_groups(node, links)

    def _correct_shape(self, node: NodeProto, links: Links) -> None:
        index = _SHAPE_INPUTS[node.op_type]
        changes = {
            axis: int(self._kept[links.output, axis].sum())
            for axis in range(links.rank(links.output))
            if (links.output, axis) in self._kept
        }
        if not changes or not links.input(index):
            return
        name = links.input(index)
        short = links.rank(links.output) - links.trace.shapes[0][name][0]
        node.input[index] = self._changed(name, {axis - short: size for axis, size in changes.items()}, node)

    def _changed(self, shape: str, changes: Mapping[int, int], node: NodeProto) -> str:
        """A shape like the one of this name with other sizes, as far as they are constant in the file."""
        if shape in self._made:
            values = array_of(self._made[shape])
            for position, size in changes.items():
                if position >= 0 and values[position] > 0:
                    values[position] = size
            return self._constant(values, f"{node.output[0]}_shape")
        maker = self._makers.get(shape)
        if maker is None or maker.op_type != "Concat":
            return shape  # computed from what shrinks; that it is right is checked in a run
        private = _copy(maker)
        begin = 0
        for index, piece in enumerate(maker.input):
            width = self._links[0].trace.shapes[0][piece][0]
            inside = {at - begin: size for at, size in changes.items() if begin <= at < begin + width}
            if inside and piece in self._made:
                private.input[index] = self._changed(piece, inside, node)
            begin += width
        private.name = private.output[0] = self._unused(f"{node.output[0]}_shape")
        self._nodes.append(private)
        return str(private.output[0])

    def _correct_slice(self, node: NodeProto, links: Links) -> None:
        cut = {axis: taken for axis, taken in slices(links).items() if taken is not None}
        kept = {axis: self._kept.get((links.input(0), axis)) for axis in cut}
        if all(found is None for found in kept.values()):
            return
        given = links.integers(3, "axes")
        axes = [axis % links.rank(links.input(0)) for axis in given] if given is not None else sorted(slices(links))
        for index, name in ((1, "starts"), (2, "ends")):
            values = list(links.integers(index, name) or ())
            for at, axis in enumerate(axes):
                found, taken = kept.get(axis), cut.get(axis)
                if found is not None and taken is not None:
                    values[at] = int(found[: taken.start if name == "starts" else taken.stop].sum())
            self._set(node, index, name, values)

    def _correct_split(self, node: NodeProto, links: Links) -> None:
        axis = int(str(links.attributes.get("axis", 0))) % links.rank(links.input(0))
        if (links.input(0), axis) not in self._kept:
            return
        sizes = []
        for name in links.step.outputs:
            kept = self._kept.get((name, axis))
            sizes.append(links.trace.shapes[0][name][axis] if kept is None else int(kept.sum()))
        if len(node.input) == 1 and not any(attribute.name == "split" for attribute in node.attribute):
            as_input = links.opset >= 13  # noqa: PLR2004 - since then `split` is an input
            if as_input:
                node.input.append("")
        self._set(node, 1, "split", sizes)
        _drop_attribute(node, "num_outputs")

    def _correct_groups(self, node: NodeProto, links: Links) -> None:
        kept = self._kept.get((links.input(0), 1))
        groups: Any = links.attributes.get("group", 1)
        if kept is not None and groups > 1:
            _drop_attribute(node, "group")
            node.attribute.append(helper.make_attribute("group", int(kept.sum()) * groups // len(kept)))

    def _set(self, node: NodeProto, index: int, name: str, values: list[int]) -> None:
        """Whole numbers as the node has them: an input, or an attribute."""
        if len(node.input) > index:
            array = np.array(values, np.int64)
            node.input[index] = self._constant(array, f"{node.output[0]}_{name}")
        else:
            _drop_attribute(node, name)
            node.attribute.append(helper.make_attribute(name, values))

    def _constant(self, values: Array, wanted: str) -> str:
        name = self._unused(wanted)
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _unused(self, wanted: str) -> str:
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted

    def _sweep(self) -> None:
        """Drop nodes and initializers that nothing needs any more."""
        needed = {value.name for value in self._graph.output}
        nodes = []
        for node in reversed(self._graph.node):
            if needed.intersection(node.output):
                nodes.append(_copy(node))
                needed.update(node.input)
        tensors = [tensor for tensor in self._graph.initializer if tensor.name in needed]
        del self._graph.node[:]
        self._graph.node.extend(reversed(nodes))
        copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in tensors]
        del self._graph.initializer[:]
        self._graph.initializer.extend(copies)


def lifted(model: ModelProto) -> ModelProto:
    """The model with its Constant nodes as initializers, which can be cut and corrected."""
    copy = copied(model)
    kept = []
    for node in copy.graph.node:
        values = [attribute for attribute in node.attribute if attribute.name == "value"]
        if node.op_type == "Constant" and values:
            tensor = copy.graph.initializer.add()
            tensor.CopyFrom(values[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(_copy(node))
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _copy(node: NodeProto) -> NodeProto:
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def _drop_attribute(node: NodeProto, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    copies = [type(attribute).FromString(attribute.SerializeToString()) for attribute in kept]
    del node.attribute[:]
    node.attribute.extend(copies)
