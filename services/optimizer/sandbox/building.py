"""Building a candidate: from a step's description to a model, by the recipes and the training.

Each kind of action pays for its own imports. Whatever breaks on the way is the candidate's failure, not the model's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import onnx

from services.optimizer.actions import REFERENCE, Distil, Prune, Sensitive, Sparsify
from services.optimizer.recipes.build import build as recipe_build
from services.optimizer.recipes.configs import DynamicInt8, Fp16, StaticQdq, WeightOnly
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.recipes.running import Means
from services.optimizer.sandbox.reference import source_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

    from services.optimizer.actions import Spec
    from services.optimizer.sandbox.lessons import Lessons
    from services.optimizer.sandbox.reference import Reference

_BUDGET_S: Final = 120.0
"""For a scan, where nothing else says how long it may take."""


@dataclass(frozen=True)
class Built:
    """A candidate's model, what was chosen on the way, and whether rows may be batched at all."""

    model: ModelProto
    parameters: Mapping[str, Any] = field(default_factory=dict)
    may_batch: bool = True
    rows: Mapping[str, int] = field(default_factory=dict)


def build(spec: Spec, reference: Reference, lessons: Lessons) -> Built:
    """The candidate of a step.

    Raises:
        NotBuilt: the recipe does not apply to this model; the message says why.
    """
    source = source_file(spec.base)
    if spec.base != REFERENCE and not source.exists():
        raise NotBuilt(f"{spec.base!r}, which it starts from, was not built")
    model = reference.model if spec.base == REFERENCE else onnx.load_model(source)
    means = Means(threads=reference.job.threads, run_timeout_s=reference.job.run_timeout_s)
    action = spec.action
    match action:
        case Prune() | Distil() | Sparsify():
            from services.optimizer.sandbox import learning  # noqa: PLC0415 - it loads torch

            _rows_first(reference)
            made, parameters = learning.shrunk(action, model, reference.sets.learnt, lessons)
            learnt = reference.sets.learnt
            return Built(made, parameters, rows={} if learnt is None else {"data": len(learnt)})
        case Sensitive():
            return _sensitive(action, model, reference, means, lessons)
        case WeightOnly() | StaticQdq() | DynamicInt8() | Fp16():
            rows = reference.calibration() if action.needs_rows else []
            used = {"calibration": len(rows)} if rows else {}
            return Built(recipe_build(action, model, rows, means), may_batch=action.may_batch, rows=used)
        case _:
            raise NotBuilt(f"nothing here builds {spec.name!r}")


def _rows_first(reference: Reference) -> None:
    """Training wants rows along the first axis of every input."""
    axes = reference.batching.inputs
    if reference.batching.outputs is None or any(axis != 0 for axis in axes.values()):
        raise NotBuilt("only models with independent rows along the first axis of every input are trained")


def _sensitive(action: Sensitive, model: ModelProto, reference: Reference, means: Means, lessons: Lessons) -> Built:
    """Static quantization with the fewest nodes left out that is close enough."""
    from services.optimizer.recipes.sensitivity import explore  # noqa: PLC0415 - heavy, and only this one needs it

    rows = reference.calibration()
    half = max(1, len(rows) // 2)
    curve = explore(
        StaticQdq(),
        model,
        rows[:half],
        rows[half:] or rows,
        budget_s=reference.job.training_budget_s or _BUDGET_S,
        means=means,
        on_progress=lambda share: lessons.say("scan", share / 2, {}),
    )
    point = curve.reaching(action.min_cosine)
    if point is None:
        best = max(curve.points, key=lambda point: point.cosine)
        raise NotBuilt(
            f"with {best.excluded} nodes left in fp32 its cosine is {best.cosine:.5f}, and no more were tried"
        )
    if point.excluded == 0:
        raise NotBuilt("no node needs to stay in fp32: it is the same as int8-static")
    parameters = {
        "recipe": point.recipe,
        "curve": [(point.excluded, round(point.cosine, 6), point.byte_size) for point in curve.points],
        "unscanned": len(curve.unscanned),
    }
    return Built(recipe_build(point.recipe, model, rows[:half], means), parameters, rows={"calibration": len(rows)})
