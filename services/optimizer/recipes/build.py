"""From a config to a model: the one entry to all recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.optimizer.recipes.configs import DynamicInt8, Fp16, StaticQdq, WeightOnly
from services.optimizer.recipes.errors import not_built
from services.optimizer.recipes.running import Means

if TYPE_CHECKING:
    from onnx import ModelProto

    from services.optimizer.recipes.configs import Recipe
    from services.optimizer.recipes.running import Rows


def build(recipe: Recipe, model: ModelProto, rows: Rows = (), means: Means | None = None) -> ModelProto:
    """The model that the recipe makes of this one, which stays as it is. `rows` calibrate, where ranges are needed.

    Raises:
        NotBuilt: it does not apply to this model, or a step broke; the message says why.
    """
    with not_built("building"):
        match recipe:
            case WeightOnly():
                from services.optimizer.recipes import weight_only  # noqa: PLC0415 - each recipe pays for its own

                return weight_only.build(recipe, model)
            case StaticQdq():
                from services.optimizer.recipes import static_qdq  # noqa: PLC0415 - as above

                return static_qdq.build(recipe, model, rows, means or Means())
            case DynamicInt8():
                from services.optimizer.recipes import dynamic_int8  # noqa: PLC0415 - as above

                return dynamic_int8.build(recipe, model)
            case Fp16():
                from services.optimizer.recipes import fp16  # noqa: PLC0415 - as above

                return fp16.build(model)
