"""The operators that can be trained through, as a table from their names to functions. What is not in it is refused.

All are of ONNX's own domain, from opset 7 on. A function gets a `Call` and computes in torch, so that gradients flow;
whole numbers and shapes are tensors like any other. Names from a file are looked up here and nowhere else.

Deliberately missing: control flow (If, Loop, Scan), recurrence (LSTM, GRU), sequences, strings, sparse tensors,
quantized numbers, random numbers, and operators of other domains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.optimizer.training.operators.elementwise import ELEMENTWISE
from services.optimizer.training.operators.products import PRODUCTS
from services.optimizer.training.operators.reductions import REDUCTIONS
from services.optimizer.training.operators.shapes import SHAPES
from services.optimizer.training.operators.windows import WINDOWS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.optimizer.training.operators.call import Operator

OPERATORS: Final[Mapping[str, Operator]] = {**ELEMENTWISE, **PRODUCTS, **REDUCTIONS, **SHAPES, **WINDOWS}
