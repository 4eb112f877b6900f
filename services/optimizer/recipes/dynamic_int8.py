"""Dynamic INT8: weights once, activations in each run by the range of the whole tensor.

So a variant of it is never batched across requests: see `configs.DynamicInt8`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.optimizer.recipes import graph as graphs
from services.optimizer.recipes.errors import not_built
from services.optimizer.recipes.ort_tools import excluded, finished, prepared, quiet
from shared.machine import cuts_off_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto

    from services.optimizer.recipes.configs import DynamicInt8

_PRODUCTS: Final = ("Attention", "Gemm", "LSTM", "MatMul")
"""Not Conv: ConvInteger is several times slower than Conv in fp32."""
MARKS: Final = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "QAttention", "DequantizeLinear"})
"""Operators of which there are more once something was quantized."""


def build(config: DynamicInt8, model: ModelProto) -> ModelProto:
    """The model with INT8 weights, and activations quantized as they come; in subgraphs too.

    Raises:
        NotBuilt: nothing in it can be quantized, or a step failed.
    """
    return finished(model, quantized(prepared(model), config), MARKS)


def operators(config: DynamicInt8) -> list[str]:
    """The types of the operators that are quantized."""
    from onnxruntime.quantization import registry  # noqa: PLC0415 - heavy, and only some recipes need it

    if config.operators == "products":
        return list(_PRODUCTS)
    return sorted(registry.IntegerOpsRegistry)


def _as_products(names: Sequence[str]) -> list[str]:
    """The names, and those of the products that the quantizer makes of Gemms before it looks at names."""
    return [*names, *(f"{name}_MatMul" for name in names)]


def quantized(ready: ModelProto, config: DynamicInt8, only: Sequence[str] = ()) -> ModelProto:
    """The prepared model quantized; of its nodes `only` these, if any are named.

    Raises:
        NotBuilt: the quantizer failed.
    """
    skipped = excluded(ready, config.exclude)
    with not_built("quantizing"), quiet():
        from onnxruntime.quantization import QuantType  # noqa: PLC0415 - as above
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer  # noqa: PLC0415 - as above
        from onnxruntime.quantization.quant_utils import QuantizationMode  # noqa: PLC0415 - as above

        quantizer = ONNXQuantizer(
            graphs.copied(ready),
            config.per_channel,
            cuts_off_sums(),  # reduce_range: weights of 7 bits
            QuantizationMode.IntegerOps,
            False,  # static
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            _as_products(only),
            _as_products(skipped),
            operators(config),
            {"MatMulConstBOnly": True, "EnableSubgraph": True},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return quantizer.model.model  # type: ignore[no-any-return] # untyped
