"""The usual recipes by name. A variant in the log is known by such a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.optimizer.recipes.configs import DynamicInt8, Fp16, StaticQdq, WeightOnly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.optimizer.recipes.configs import Recipe

RECIPES: Final[Mapping[str, Recipe]] = {
    "int8-weight-only": WeightOnly(bits=8, block_size=128),
    "int4-weight-only": WeightOnly(bits=4, block_size=32),
    "int4-weight-only-coarse": WeightOnly(bits=4, block_size=128),
    "int8-static": StaticQdq(),
    "int8-static-products": StaticQdq(operators="products"),
    "int8-static-percentile": StaticQdq(method="percentile"),
    "int8-static-entropy": StaticQdq(method="entropy"),
    "int8-static-signed": StaticQdq(activations="s8"),
    "int8-dynamic": DynamicInt8(),
    "int8-dynamic-products": DynamicInt8(operators="products"),
    "fp16": Fp16(),
}

DETERMINISTIC: Final[frozenset[str]] = frozenset(RECIPES)
"""Recipes that give the same bytes again from the same model and rows, in another process too, with the same versions
of the tools on the same machine. Calibration runs the model, and kernels of another machine round in other places."""
