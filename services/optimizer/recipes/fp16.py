"""fp16 inside, inputs and outputs as they were, so that callers notice nothing. For GPU workers.

Done by `onnxruntime.transformers.float16`, which ships with ONNX Runtime and is the maintained descendant of
onnxconverter-common's `float16`: it knows which inputs must stay fp32 in which opset, converts subgraphs, and keeps
operators without fp16 kernels in fp32. Numbers beyond its range become its largest, 1e4, which keeps sums with masks
of -10000 finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from services.optimizer.recipes import graph as graphs
from services.optimizer.recipes.errors import NotBuilt, not_built
from services.optimizer.recipes.ort_tools import quiet

if TYPE_CHECKING:
    from onnx import ModelProto


def build(model: ModelProto) -> ModelProto:
    """A copy of the model in fp16.

    Raises:
        NotBuilt: it has no fp32 constants, or the conversion failed.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - heavy, only needed here

    if not _halvable(model):
        raise NotBuilt("the model has no fp32 constants to halve")
    with not_built("converting to fp16"), quiet():
        converted: ModelProto = convert_float_to_float16(graphs.copied(model), keep_io_types=True)
    return converted


def _halvable(model: ModelProto) -> bool:
    constants = list(model.graph.initializer)
    for node in graphs.nodes(model.graph):
        constants += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        for sub in graphs.subgraphs(node):
            constants += sub.initializer
    return any(tensor.data_type == TensorProto.FLOAT for tensor in constants)
