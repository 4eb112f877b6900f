"""Static INT8 in QDQ format: ranges from calibration, pairs of QuantizeLinear and DequantizeLinear around operators.

In three steps, which `sensitivity` takes apart: the graph is prepared once, calibrated once, and quantized as often as
there are nodes to try.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from services.optimizer.recipes import graph as graphs
from services.optimizer.recipes.calibration import ranges
from services.optimizer.recipes.errors import not_built
from services.optimizer.recipes.ort_tools import PRODUCTS, excluded, finished, prepared, quantizable, quiet
from shared.machine import cuts_off_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto

    from services.optimizer.recipes.configs import StaticQdq
    from services.optimizer.recipes.running import Means, Rows

MARKS: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Operators of which there are more once something was quantized."""


def build(config: StaticQdq, model: ModelProto, rows: Rows, means: Means) -> ModelProto:
    """The model with INT8 weights and activations.

    Raises:
        NotBuilt: nothing in it can be quantized, or a step failed.
    """
    ready = prepared(model)
    quantizable(ready, operators(config), config.exclude)
    found = ranges(ready, config, operators(config), rows, means)
    return finished(model, quantized(ready, config, found), MARKS)


def operators(config: StaticQdq) -> list[str]:
    """The types of the operators that are quantized."""
    from onnxruntime.quantization import registry  # noqa: PLC0415 - heavy, and only some recipes need it

    if config.operators == "products":
        return list(PRODUCTS)
    return sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry})


def quantized(ready: ModelProto, config: StaticQdq, found: Any, only: Sequence[str] = ()) -> ModelProto:
    """The prepared model quantized with the ranges found; of its nodes `only` these, if any are named.

    Raises:
        NotBuilt: the quantizer failed.
    """
    signed = config.activations == "s8"
    skipped = excluded(ready, config.exclude)
    with not_built("quantizing"), quiet():
        from onnxruntime.quantization import QuantType  # noqa: PLC0415 - as above
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer  # noqa: PLC0415 - as above

        quantizer = QDQQuantizer(
            graphs.copied(ready),
            config.per_channel,
            cuts_off_sums(),  # reduce_range: weights of 7 bits
            QuantType.QInt8,
            QuantType.QInt8 if signed else QuantType.QUInt8,
            found,
            list(only),
            skipped,
            operators(config),
            {"ActivationSymmetric": signed, "WeightSymmetric": True},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return quantizer.model.model  # type: ignore[no-any-return] # untyped
