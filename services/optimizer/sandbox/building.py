"""Building a candidate: from a step's description to a model, by the recipes and the training.

Each kind of action pays for its own imports. Whatever breaks on the way is the candidate's failure, not the model's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx

from services.optimizer.actions import REFERENCE, Quantize
from services.optimizer.recipes.build import build as recipe_build
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.recipes.running import Means
from services.optimizer.sandbox.reference import source_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

    from services.optimizer.actions import Spec
    from services.optimizer.sandbox.reference import Reference


@dataclass(frozen=True)
class Built:
    """A candidate's model, what was chosen on the way, and whether rows may be batched at all."""

    model: ModelProto
    parameters: Mapping[str, Any] = field(default_factory=dict)
    may_batch: bool = True
    rows: Mapping[str, int] = field(default_factory=dict)


def build(spec: Spec, reference: Reference) -> Built:
    """The candidate of a step.

    Raises:
        NotBuilt: the recipe does not apply to this model; the message says why.
    """
    model = reference.model if spec.base == REFERENCE else onnx.load_model(source_file(spec.base))
    action = spec.action
    means = Means(threads=reference.job.threads, run_timeout_s=reference.job.run_timeout_s)
    if isinstance(action, Quantize):
        rows = reference.calibration() if action.needs_rows else []
        used = {"calibration": len(rows)} if rows else {}
        return Built(recipe_build(action, model, rows, means), may_batch=action.may_batch, rows=used)
    raise NotBuilt(f"nothing here builds {spec.name!r}")
