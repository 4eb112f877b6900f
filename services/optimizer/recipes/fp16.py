"""fp16 inside, inputs and outputs as they were, so that callers notice nothing. For GPU workers.

Done by `onnxruntime.transformers.float16`, which ships with ONNX Runtime and is the maintained descendant of
onnxconverter-common's `float16`: it knows which inputs must stay fp32 in which opset, converts subgraphs, and keeps
operators without fp16 kernels in fp32. Numbers beyond 1e4 become 1e4, which keeps sums with masks of -10000 finite.
The graph is prepared first, since that folds away constants that are worse off in fp16 than their product, such as the
variances of a batch normalization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from services.optimizer.recipes import graph as graphs
from services.optimizer.recipes.errors import NotBuilt, not_built
from services.optimizer.recipes.ort_tools import cleaned, prepared, quiet

if TYPE_CHECKING:
    from onnx import ModelProto


def build(model: ModelProto) -> ModelProto:
    """A copy of the model in fp16.

    Raises:
        NotBuilt: it has no fp32 constants, or the conversion failed.
    """
    if not _halvable(model):
        raise NotBuilt("the model has no fp32 constants to halve")
    ready = prepared(model)
    with not_built("converting to fp16"), quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - heavy, only needed here

        return cleaned(model, convert_float_to_float16(ready, keep_io_types=True))


def _halvable(model: ModelProto) -> bool:
    constants = list(model.graph.initializer)
    for node in graphs.nodes(model.graph):
        constants += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        for sub in graphs.subgraphs(node):
            constants += sub.initializer
    return any(tensor.data_type == TensorProto.FLOAT for tensor in constants)
