"""Which nodes quantization hurts, and what leaving them in fp32 gives.

1. The graph is prepared and calibrated once. Then each node is quantized alone, and the error that this adds to the
   answers on held-out rows is its sensitivity; a node that does not build or run has an infinite one. (One layer at a
   time, as H. Wu et al. do for partial quantization, https://arxiv.org/abs/2004.09602, section 5.1.)
2. The recipe is built again without the 0, 1, 2, 4, 8 … most sensitive nodes. What no other point beats both in the
   number of excluded nodes and in error is the curve. Each point is a whole recipe, so it can be built and kept.

All of it ends within a time budget, of which scanning may use two thirds: a step begins only if as much is left as the
longest one so far took; the first one may run over. Nodes that were not reached are named, and stay quantized. Errors
of nodes add up only roughly: that is why the curve is measured, not computed.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from services.optimizer.recipes import dynamic_int8, static_qdq
from services.optimizer.recipes.calibration import ranges
from services.optimizer.recipes.configs import DynamicInt8, StaticQdq
from services.optimizer.recipes.curve import Curve, Point, Sensitivity, figures, pareto
from services.optimizer.recipes.errors import NotBuilt, not_built
from services.optimizer.recipes.ort_tools import PRODUCTS, finished, prepared, quantizable
from services.optimizer.recipes.running import Means, answers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnx import ModelProto

    from services.optimizer.recipes.running import Rows

_SCANNING_SHARE: Final = 2 / 3


class _Budget:
    """Time left, and how long the longest step took."""

    def __init__(self, clock: Callable[[], float], budget_s: float, on_progress: Callable[[float], None]) -> None:
        self._clock = clock
        self._on_progress = on_progress
        self._began_s = self._step_s = clock()
        self._budget_s = budget_s
        self._longest_s = 0.0

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began_s

    def step(self) -> None:
        """A step has ended."""
        now_s = self._clock()
        self._longest_s, self._step_s = max(self._longest_s, now_s - self._step_s), now_s
        self._on_progress(min(1.0, self.elapsed_s / self._budget_s))

    def allows(self, share: float = 1.0) -> bool:
        """Whether one more step is likely to end within this share of it."""
        self._step_s = self._clock()
        return self.elapsed_s + self._longest_s <= self._budget_s * share


def explore(
    recipe: StaticQdq | DynamicInt8,
    model: ModelProto,
    rows: Rows,
    held_out: Rows,
    *,
    budget_s: float,
    means: Means | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Curve:
    """Rank the nodes that the recipe would quantize, and measure what excluding the most sensitive ones gives.

    Args:
        recipe: what it excludes already stays excluded.
        model: any; it stays as it is.
        rows: for calibration.
        held_out: for errors; not the rows of calibration, or errors look smaller than they are.
        budget_s: seconds for all of it. Preparing and calibrating are within, but are not cut short.
        means: what runs may use.
        clock: seconds that only grow.
        on_progress: called after each step with the share of the budget that is spent.

    Raises:
        NotBuilt: there is nothing to quantize, no row is held out, or no time was left to measure a single point.
    """
    if not held_out:
        raise NotBuilt("sensitivities are measured on held-out rows, and there are none")
    budget = _Budget(clock, budget_s, on_progress)
    bench = _Bench(recipe, model, rows, held_out, means or Means())
    ranking, unscanned = _scan(bench, budget)
    points = list(_points(bench, ranking, budget))
    if not points:
        raise NotBuilt(f"no point of the curve built within {budget_s:g} s")
    return Curve(ranking=ranking, unscanned=unscanned, points=pareto(points), elapsed_s=budget.elapsed_s)


class _Bench:
    """The prepared graph and its ranges, for quantizing it again and again."""

    def __init__(
        self, recipe: StaticQdq | DynamicInt8, model: ModelProto, rows: Rows, held_out: Rows, means: Means
    ) -> None:
        self.recipe = recipe
        self._means = means
        self._held_out = held_out
        self._model = model
        self._ready = prepared(model)
        self._module = static_qdq if isinstance(recipe, StaticQdq) else dynamic_int8
        operators = self._module.operators(recipe)
        names = quantizable(self._ready, operators, recipe.exclude)
        self._ranges = ranges(self._ready, recipe, operators, rows, means) if isinstance(recipe, StaticQdq) else None
        self.operators = {node.name: node.op_type for node in self._ready.graph.node}
        self.names = sorted(names, key=lambda name: self.operators[name] not in PRODUCTS)
        with not_built("running the model on held-out rows"):
            self._reference = answers(model, held_out, means)

    def quantized(self, recipe: StaticQdq | DynamicInt8, only: Sequence[str] = ()) -> ModelProto:
        """The graph by the recipe; of its nodes `only` these."""
        if isinstance(recipe, StaticQdq):
            return static_qdq.quantized(self._ready, recipe, self._ranges, only)
        return dynamic_int8.quantized(self._ready, recipe, only)

    def finished(self, recipe: StaticQdq | DynamicInt8) -> ModelProto:
        """As `build` gives it.

        Raises:
            NotBuilt: all that could be quantized is excluded.
        """
        return finished(self._model, self.quantized(recipe), self._module.MARKS)

    def figures(self, quantized: ModelProto) -> tuple[float, float]:
        """Error and cosine against the original's answers."""
        return figures(self._reference, answers(quantized, self._held_out, self._means))


def _scan(bench: _Bench, budget: _Budget) -> tuple[tuple[Sensitivity, ...], tuple[str, ...]]:
    """Sensitivities, the largest first, and the nodes that there was no time for. Products come first."""
    found: list[Sensitivity] = []
    for name in bench.names:
        if not budget.allows(_SCANNING_SHARE):
            break
        try:
            error, _ = bench.figures(bench.quantized(bench.recipe, [name]))
        except Exception:  # noqa: BLE001 - odd nodes break builders and kernels in odd ways: they stay in fp32
            error = math.inf
        budget.step()
        found.append(Sensitivity(node=name, operator=bench.operators[name], error=error))
    # Sorting is stable: of equals the first in the graph comes first, each time.
    return tuple(sorted(found, key=lambda each: -each.error)), tuple(bench.names[len(found) :])


def _points(bench: _Bench, ranking: Sequence[Sensitivity], budget: _Budget) -> Iterator[Point]:
    """Points with ever more excluded nodes; those that do not build or run are left out."""
    for count in _counts(min(len(ranking), len(bench.names) - 1)):
        if not budget.allows():
            return
        exclude = bench.recipe.exclude + tuple(each.node for each in ranking[:count])
        recipe = replace(bench.recipe, exclude=exclude)
        try:
            quantized = bench.finished(recipe)
            error, cosine = bench.figures(quantized)
        except Exception:  # noqa: BLE001, S112 - as above; excluding more nodes may mend it
            continue
        finally:
            budget.step()
        yield Point(recipe=recipe, excluded=count, error=error, cosine=cosine, byte_size=quantized.ByteSize())


def _counts(most: int) -> Iterator[int]:
    """0, 1, 2, 4, 8 … up to the most."""
    yield 0
    count = 1
    while count <= most:
        yield count
        count *= 2
