"""Building candidates. Today one: weight-only INT8.

Every product of activations with a constant FP32 matrix becomes one `MatMulNBits`
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits): the matrix is
kept as bytes with one FP32 scale for each block of a column, symmetric around the operator's default zero point 128,
rounded to nearest. `MatMul` and `Gemm` are both taken; a Gemm's constant bias goes along. Activations stay FP32 at the
node's borders, so a row's answer does not depend on its neighbours; that is proved again all the same (`batching`).

Written out here and not taken from `onnxruntime.quantization`: that ignores Gemm, needs seconds to import (onnx_ir,
sympy), and its 8-bit rounding is these few lines.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from onnx import GraphProto, ModelProto, NodeProto

_BITS: Final = 8
_ZERO_POINT: Final = 128
_LARGEST: Final = 127
_MIN_BLOCK: Final = 16
_MAX_BLOCK: Final = 128
_ACCURACY_LEVEL: Final = 4
"""Multiply in INT8 with activations quantized by block and row: what VNNI and its kin are fast at."""
_DOMAIN: Final = "com.microsoft"


class NotBuilt(Exception):
    """The candidate can't be built from this model; the message says why."""


def weight_only_int8(model: ModelProto) -> ModelProto:
    """A copy of the model with its constant matrices as INT8.

    Raises:
        NotBuilt: there is no such matrix.
    """
    quantized = type(model)()
    quantized.CopyFrom(model)
    graph = quantized.graph
    overridable = {value.name for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in overridable}
    taken = _names(graph)
    nodes: list[NodeProto] = []
    added: list[TensorProto] = []
    for index, node in enumerate(graph.node):
        product = _product(node, constants)
        if product is None:
            nodes.append(node)
            continue
        prefix = _unused(f"int8_{index}", taken)
        new_nodes, new_tensors = product.quantized(node, prefix)
        nodes += new_nodes
        added += new_tensors
    if not added:
        raise NotBuilt("the model has no MatMul or Gemm with a constant FP32 matrix")
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(added)
    _drop_unused(graph, set(constants))
    if not any(opset.domain == _DOMAIN for opset in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return quantized


@dataclass(frozen=True)
class _Product:
    """Activations times a constant matrix of shape [K, N], perhaps plus a bias."""

    matrix: npt.NDArray[np.float32]
    bias: str | None = None
    bias_is_row: bool = False

    def quantized(self, node: NodeProto, prefix: str) -> tuple[list[NodeProto], list[TensorProto]]:
        """The nodes and initializers that do what `node` did."""
        rows, columns = self.matrix.shape
        block = int(min(_MAX_BLOCK, max(_MIN_BLOCK, 2 ** (rows - 1).bit_length())))
        packed, scales = quantize(self.matrix, block)
        tensors = [
            numpy_helper.from_array(packed, f"{prefix}_weights"),
            numpy_helper.from_array(scales, f"{prefix}_scales"),
        ]
        inputs = [node.input[0], *(tensor.name for tensor in tensors)]
        added_bias = self.bias is not None and not self.bias_is_row
        if self.bias is not None and self.bias_is_row:
            inputs += ["", "", self.bias]  # no zero points, no group index
        output = f"{prefix}_product" if added_bias else node.output[0]
        attributes = {"K": rows, "N": columns, "bits": _BITS, "block_size": block, "accuracy_level": _ACCURACY_LEVEL}
        nodes = [helper.make_node("MatMulNBits", inputs, [output], prefix, domain=_DOMAIN, **attributes)]
        if added_bias:
            nodes.append(helper.make_node("Add", [output, str(self.bias)], [node.output[0]], f"{prefix}_bias"))
        return nodes, tensors


def quantize(matrix: npt.NDArray[np.float32], block: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The matrix [K, N] as bytes [N, blocks, block] and scales [N, blocks], K padded with zeros to whole blocks."""
    rows, columns = matrix.shape
    blocks = -(-rows // block)
    padded = np.zeros((columns, blocks * block), np.float32)
    padded[:, :rows] = matrix.T
    grouped = padded.reshape(columns, blocks, block)
    scales = np.abs(grouped).max(axis=2) / _LARGEST
    divisor = np.where(scales == 0, 1, scales)[:, :, None]
    packed = np.clip(np.rint(grouped / divisor) + _ZERO_POINT, 1, 255).astype(np.uint8)
    return packed, scales.astype(np.float32)


def _product(node: NodeProto, constants: dict[str, TensorProto]) -> _Product | None:
    """The node as a product that can be quantized, None if it is something else."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return None
    weights = constants.get(node.input[1])
    if weights is None or weights.data_type != TensorProto.FLOAT or len(weights.dims) != 2 or 0 in weights.dims:  # noqa: PLR2004 - a matrix
        return None
    matrix = numpy_helper.to_array(weights)
    if not np.isfinite(matrix).all():
        return None
    if node.op_type == "MatMul":
        return _Product(matrix)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    if attributes.get("transB", 0):
        matrix = matrix.T
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None  # noqa: PLR2004 - Gemm's third input
    row = constants.get(bias or "")
    is_row = row is not None and list(row.dims) == [matrix.shape[1]] and row.data_type == TensorProto.FLOAT
    return _Product(matrix, bias, is_row)


def _drop_unused(graph: GraphProto, constants: set[str]) -> None:
    """Remove the constants that nothing names any more; a matrix may have had other uses, in subgraphs too."""
    uses = Counter(name for node in _nodes(graph) for name in node.input)
    uses.update(value.name for value in graph.output)
    uses.update(value.name for node in _nodes(graph) for sub in _subgraphs(node) for value in sub.output)
    kept = [tensor for tensor in graph.initializer if tensor.name not in constants or uses[tensor.name]]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for sub in _subgraphs(node):
            yield from _nodes(sub)


def _subgraphs(node: NodeProto) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _names(graph: GraphProto) -> set[str]:
    return {name for node in _nodes(graph) for name in (node.name, *node.input, *node.output)}


def _unused(wanted: str, taken: set[str]) -> str:
    """A prefix that no name in the graph begins with."""
    while any(name.startswith(wanted) for name in taken):
        wanted = f"{wanted}_"
    return wanted
