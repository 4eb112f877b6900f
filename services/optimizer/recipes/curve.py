"""What an exploration of sensitivities gives: a ranking of nodes, and a curve of excluded nodes against error. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from services.optimizer.recipes.configs import DynamicInt8, StaticQdq

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.tensors import Array

    Answers = Sequence[Sequence[Array]]
    """The outputs of each run."""


class Sensitivity(Struct, frozen=True, kw_only=True):
    """What quantizing one node alone does to the answers."""

    node: str
    operator: str
    error: float
    """As in `Point`; infinite if it did not build or run."""


class Point(Struct, frozen=True, kw_only=True):
    """A recipe that leaves `excluded` nodes in fp32, measured on held-out rows."""

    recipe: StaticQdq | DynamicInt8
    excluded: int
    error: float
    """Length of the difference over length of the answers, all rows together; the largest of all outputs."""
    cosine: float
    """Between answers, all rows together; the least of all outputs."""
    byte_size: int


class Curve(Struct, frozen=True, kw_only=True):
    """What an exploration found. `ranking` begins with the most sensitive node, `points` with the fewest excluded."""

    ranking: tuple[Sensitivity, ...]
    unscanned: tuple[str, ...]
    points: tuple[Point, ...]
    elapsed_s: float

    def reaching(self, min_cosine: float) -> Point | None:
        """The point with the fewest excluded nodes that is at least this close; None: no point is."""
        return next((point for point in self.points if point.cosine >= min_cosine), None)


def pareto(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other beats in both, by excluded nodes; of equals the first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.excluded, point.error)):
        if not kept or point.error < kept[-1].error:
            kept.append(point)
    return tuple(kept)


def figures(reference: Answers, found: Answers) -> tuple[float, float]:
    """Error and cosine as in `Point`, over runs of all outputs. No number, or another shape, is infinitely far off."""
    pairs = [_figures(*output) for output in zip(zip(*reference, strict=True), zip(*found, strict=True), strict=True)]
    return max(error for error, _ in pairs), min(cosine for _, cosine in pairs)


def _figures(reference: Sequence[Any], found: Sequence[Any]) -> tuple[float, float]:
    """Of one output. Whole numbers, flags and strings count as wrong where they differ."""
    if any(left.shape != right.shape for left, right in zip(reference, found, strict=True)):
        return math.inf, 0.0
    expected, got = (np.concatenate([array.ravel() for array in arrays]) for arrays in (reference, found))
    if expected.dtype.kind != "f":
        differing = float(np.mean(expected != got)) if expected.size else 0.0
        return differing, 1.0 - differing
    wide, other = expected.astype(np.float64), got.astype(np.float64)
    with np.errstate(all="ignore"):
        length, difference = float(np.linalg.norm(wide)), float(np.linalg.norm(wide - other))
        cosine = float(wide @ other / (length * np.linalg.norm(other)))
    if not difference:
        return 0.0, 1.0
    error = difference / length if length else math.inf
    return (error, cosine) if math.isfinite(error) and math.isfinite(cosine) else (math.inf, 0.0)
