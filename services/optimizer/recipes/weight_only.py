"""Weight-only INT8 and INT4.

Every product of activations with a constant FP32 matrix becomes one `MatMulNBits`
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits): the matrix is
kept as whole numbers with one FP32 scale for each block of a column, around the operator's default zero point, rounded
to nearest. `MatMul` and `Gemm` are both taken; a Gemm's constant bias goes along. Activations stay FP32 at the node's
borders, so a row's answer does not depend on its neighbours; that is proved again all the same (`batching`).

Written out here and not taken from `onnxruntime.quantization`: that ignores Gemm, needs seconds to import (onnx_ir,
sympy), and its rounding is the few lines of `packing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from services.optimizer.recipes import graph as graphs
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.recipes.packing import int4, int8

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnx import GraphProto, ModelProto, NodeProto

    from services.optimizer.recipes.configs import WeightOnly

_MIN_BLOCK: Final = 16
_ACCURACY_LEVEL: Final = 4
"""Multiply in INT8 with activations quantized by block and row: what VNNI and its kin are fast at."""


def build(config: WeightOnly, model: ModelProto) -> ModelProto:
    """A copy of the model with its constant matrices as whole numbers.

    Raises:
        NotBuilt: there is no such matrix.
    """
    quantized = graphs.copied(model)
    graph = quantized.graph
    graphs.hoist_constants(graph)
    constants = _constants(graph)
    taken = graphs.names(graph)
    nodes: list[NodeProto] = []
    added: list[TensorProto] = []
    for index, node in enumerate(graph.node):
        product = _product(node, constants)
        if product is None:
            nodes.append(node)
            continue
        prefix = graphs.unused(f"int{config.bits}_{index}", taken)
        new_nodes, new_tensors = product.quantized(node, prefix, config)
        nodes += new_nodes
        added += new_tensors
    if not added:
        raise NotBuilt("the model has no MatMul or Gemm with a constant FP32 matrix")
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(added)
    graphs.drop_unused(graph, set(constants))
    if not any(opset.domain == graphs.CONTRIB_DOMAIN for opset in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid(graphs.CONTRIB_DOMAIN, 1))
    return quantized


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Initializers that no caller can override."""
    overridable = {value.name for value in graph.input}
    return {tensor.name: tensor for tensor in graph.initializer if tensor.name not in overridable}


@dataclass(frozen=True)
class _Product:
    """Activations times a constant matrix of shape [K, N], perhaps plus a bias."""

    matrix: npt.NDArray[np.float32]
    bias: str | None = None
    bias_is_row: bool = False

    def quantized(self, node: NodeProto, prefix: str, config: WeightOnly) -> tuple[list[NodeProto], list[TensorProto]]:
        """The nodes and initializers that do what `node` did."""
        rows, columns = self.matrix.shape
        block = int(min(config.block_size, max(_MIN_BLOCK, 2 ** (rows - 1).bit_length())))
        packed, scales = (int8 if config.bits == 8 else int4)(self.matrix, block)  # noqa: PLR2004 - bits
        tensors = [
            numpy_helper.from_array(packed, f"{prefix}_weights"),
            numpy_helper.from_array(scales, f"{prefix}_scales"),
        ]
        inputs = [node.input[0], *(tensor.name for tensor in tensors)]
        added_bias = self.bias is not None and not self.bias_is_row
        if self.bias is not None and self.bias_is_row:
            inputs += ["", "", self.bias]  # no zero points, no group index
        output = f"{prefix}_product" if added_bias else node.output[0]
        attributes: dict[str, Any] = {"K": rows, "N": columns, "bits": config.bits, "block_size": block}
        attributes["accuracy_level"] = _ACCURACY_LEVEL
        nodes = [helper.make_node("MatMulNBits", inputs, [output], prefix, domain=graphs.CONTRIB_DOMAIN, **attributes)]
        if added_bias:
            nodes.append(helper.make_node("Add", [output, str(self.bias)], [node.output[0]], f"{prefix}_bias"))
        return nodes, tensors


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
