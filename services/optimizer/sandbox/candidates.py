"""Building candidates: weight-only INT8, by its recipe.

Goes once `pipeline` takes its candidates from `recipes.registry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.optimizer.recipes.build import build
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.recipes.packing import int8 as quantize
from services.optimizer.recipes.registry import RECIPES

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["NotBuilt", "quantize", "weight_only_int8"]


def weight_only_int8(model: ModelProto) -> ModelProto:
    """A copy of the model with its constant matrices as INT8.

    Raises:
        NotBuilt: there is no such matrix.
    """
    return build(RECIPES["int8-weight-only"], model)
