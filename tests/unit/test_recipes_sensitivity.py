"""Sensitivity: the ranking, the curve, and that a budget ends both."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimizer.recipes import sensitivity
from services.optimizer.recipes.build import build
from services.optimizer.recipes.configs import DynamicInt8, StaticQdq
from services.optimizer.recipes.curve import Point, figures, pareto
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.recipes.running import Means, answers
from services.optimizer.recipes.sensitivity import explore
from support import recipe_models, uploads

ROWS, HELD_OUT = recipe_models.images(), recipe_models.images(seed=9)


@pytest.fixture
def clock(monkeypatch):
    """Time in which nothing but running a model takes any: a second each."""
    now_s = [0.0]
    run = sensitivity.answers

    def running(*args):
        now_s[0] += 1.0
        return run(*args)

    monkeypatch.setattr(sensitivity, "answers", running)
    return lambda: now_s[0]


def touchy():
    """A product whose input has one enormous column, which a scale for the tensor can't serve, and a harmless one."""
    model = uploads.mlp((8, 16, 4))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w0")
    matrix = np.frombuffer(weights.raw_data, np.float32).reshape(16, 8).copy()
    matrix[:, 0] = 1e-4
    weights.raw_data = matrix.tobytes()
    rows = []
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((16, 8)).astype(np.float32)
        x[:, 0] *= 1e4
        rows.append({"x": x})
    return model, rows[:2], rows[2:]


@pytest.mark.parametrize("recipe", [StaticQdq(operators="products"), DynamicInt8(operators="products")])
def test_the_touchy_node_comes_first_and_leaving_it_mends_the_answers(recipe):
    curve = explore(recipe, *touchy(), budget_s=600)
    assert [each.operator for each in curve.ranking] == ["Gemm", "Gemm"]
    assert curve.ranking[0].error > 5 * curve.ranking[1].error
    assert [point.excluded for point in curve.points] == [0, 1]
    assert curve.points[1].recipe.exclude == (curve.ranking[0].node,)
    assert curve.points[1].error < curve.points[0].error / 5
    assert curve.unscanned == ()


def test_points_are_recipes_that_build_what_was_measured():
    model = recipe_models.network()
    curve = explore(StaticQdq(), model, ROWS, HELD_OUT, budget_s=600)
    reference = answers(model, HELD_OUT, Means())
    for point in curve.points:
        built = build(point.recipe, model, ROWS)
        assert figures(reference, answers(built, HELD_OUT, Means())) == (point.error, point.cosine)
        assert built.ByteSize() == point.byte_size


def test_the_curve_falls():
    curve = explore(StaticQdq(), recipe_models.network(), ROWS, HELD_OUT, budget_s=600)
    for left, right in pairwise(curve.points):
        assert left.excluded < right.excluded
        assert left.error > right.error
    assert curve.reaching(curve.points[-1].cosine) is not None
    assert curve.reaching(-1.0) == curve.points[0]
    assert curve.reaching(1.1) is None


@pytest.mark.parametrize("budget_s", [3.0, 5.0, 8.0, 30.0])
def test_the_budget_ends_it(clock, budget_s):
    curve = explore(StaticQdq(), recipe_models.network(), ROWS, HELD_OUT, budget_s=budget_s, clock=clock)
    assert clock() == curve.elapsed_s <= budget_s
    assert bool(curve.unscanned) is (budget_s < 30)
    assert curve.points


def test_products_are_scanned_before_the_rest(clock):
    curve = explore(StaticQdq(), recipe_models.network(), ROWS, HELD_OUT, budget_s=6.0, clock=clock)
    assert sorted(each.operator for each in curve.ranking) == ["Conv", "Conv", "Gemm"]
    assert curve.unscanned


def test_no_time_at_all(clock):
    with pytest.raises(NotBuilt, match="no point of the curve built within"):
        explore(StaticQdq(), recipe_models.network(), ROWS, HELD_OUT, budget_s=0.5, clock=clock)


def test_no_rows_held_out():
    with pytest.raises(NotBuilt, match="held-out rows"):
        explore(StaticQdq(), recipe_models.network(), ROWS, [], budget_s=1.0)


def test_a_node_that_breaks_the_quantizer_stays_out(monkeypatch):
    """It has an infinite error, so it is the first that the points leave in fp32."""
    quantized = sensitivity.static_qdq.quantized

    def breaking(ready, config, found, only=()):
        if "Conv_0" in only or (not only and "Conv_0" not in config.exclude):
            raise RuntimeError("no kernel")
        return quantized(ready, config, found, only)

    monkeypatch.setattr(sensitivity.static_qdq, "quantized", breaking)
    curve = explore(StaticQdq(operators="products"), recipe_models.network(), ROWS, HELD_OUT, budget_s=600)
    assert (curve.ranking[0].node, curve.ranking[0].error) == ("Conv_0", math.inf)
    assert all("Conv_0" in point.recipe.exclude for point in curve.points)
    assert curve.points[0].excluded == 1


def test_progress_grows():
    seen = []
    explore(StaticQdq(), recipe_models.network(), ROWS, HELD_OUT, budget_s=600, on_progress=seen.append)
    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] <= 1


POINTS = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=1)


@given(POINTS)
def test_no_point_of_the_curve_is_beaten(drawn):
    points = [
        Point(recipe=StaticQdq(), excluded=excluded, error=error, cosine=1 - error, byte_size=0)
        for excluded, error in drawn
    ]
    kept = pareto(points)
    for point in points:
        assert any(each.excluded <= point.excluded and each.error <= point.error for each in kept)
    for left, right in pairwise(kept):
        assert left.excluded < right.excluded
        assert left.error > right.error


class TestFigures:
    def test_the_same(self):
        assert figures([[np.ones(3)]], [[np.ones(3)]]) == (0.0, 1.0)
        assert figures([[np.zeros(3)]], [[np.zeros(3)]]) == (0.0, 1.0)

    def test_relative_to_the_answers(self):
        error, cosine = figures([[np.array([3.0, 4.0])]], [[np.array([3.0, 4.5])]])
        assert error == pytest.approx(0.1)
        assert 0.99 < cosine < 1

    def test_the_worst_output_counts(self):
        good, bad = np.ones(2), np.array([1.0, 0.0])
        assert figures([[good, good]], [[good, bad]])[0] == pytest.approx(math.sqrt(0.5))

    def test_what_is_far_off(self):
        assert figures([[np.ones(2)]], [[np.full(2, np.nan)]]) == (math.inf, 0.0)
        assert figures([[np.ones(2)]], [[np.ones(3)]]) == (math.inf, 0.0)
        assert figures([[np.zeros(2)]], [[np.ones(2)]]) == (math.inf, 0.0)

    def test_labels(self):
        assert figures([[np.array([1, 2, 3, 4])]], [[np.array([1, 2, 3, 5])]]) == (0.25, 0.75)
