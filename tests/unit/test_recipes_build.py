"""Recipes that go through ONNX Runtime's tools: what they keep, what they shrink, and how they say that they can't."""

from __future__ import annotations

import logging
import tempfile
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from services.optimizer.recipes import registry
from services.optimizer.recipes.build import build
from services.optimizer.recipes.configs import DynamicInt8, Fp16, Recipe, StaticQdq, WeightOnly
from services.optimizer.recipes.errors import NotBuilt, not_built
from services.optimizer.recipes.running import Means, answers
from shared import machine
from support import recipe_models, uploads

STATIC = {name: recipe for name, recipe in registry.RECIPES.items() if isinstance(recipe, StaticQdq)}
ORT_BASED = {name: recipe for name, recipe in registry.RECIPES.items() if not isinstance(recipe, WeightOnly)}


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    return recipe_models.digits_cnn(tmp_path_factory.mktemp("cnn"))


def accuracy(model, images, labels):
    ((scores,),) = answers(model, [images], Means())
    return float(np.mean(scores.argmax(axis=1) == labels))


def operators(model):
    return {node.op_type for node in model.graph.node}


def cosine(model, built, rows):
    expected, found = (
        np.concatenate([outputs[0].ravel() for outputs in answers(each, rows, Means())]) for each in (model, built)
    )
    return float(expected @ found / np.linalg.norm(expected) / np.linalg.norm(found))


@pytest.mark.parametrize("name", sorted(registry.RECIPES))
def test_digits_are_still_read(cnn, name):
    model, rows, images, labels = cnn
    before = model.SerializeToString()
    built = build(registry.RECIPES[name], model, rows)
    assert accuracy(built, images, labels) >= accuracy(model, images, labels) - 0.01
    assert built.ByteSize() < len(before) * 0.6
    assert model.SerializeToString() == before


@pytest.mark.parametrize("name", sorted(STATIC))
def test_static_int8_is_a_third(cnn, name):
    model, rows, _, _ = cnn
    built = build(STATIC[name], model, rows)
    assert built.ByteSize() < model.ByteSize() / 3
    assert not built.metadata_props


@pytest.mark.parametrize(
    "isa", ["x86_64-avx2", "x86_64-avx512f", "x86_64-avx512_vnni", "x86_64-avx_vnni", "aarch64-asimddp"]
)
@pytest.mark.parametrize("name", sorted(name for name, recipe in ORT_BASED.items() if not isinstance(recipe, Fp16)))
def test_weights_have_seven_bits_where_sums_of_eight_are_cut_off(cnn, name, isa, monkeypatch):
    monkeypatch.setattr(machine, "isa", lambda: isa)
    model, rows, _, _ = cnn
    built = build(ORT_BASED[name], model, rows)
    weights = [numpy_helper.to_array(each) for each in built.graph.initializer if each.data_type == TensorProto.INT8]
    largest = max(int(np.abs(each.astype(int)).max()) for each in weights if each.size > 1)
    assert largest <= 64 if isa in ("x86_64-avx2", "x86_64-avx512f") else largest > 100


@pytest.mark.parametrize("name", sorted(ORT_BASED))
@pytest.mark.parametrize("opset", [11, 13, 20])
def test_inputs_and_outputs_stay(name, opset):
    model = recipe_models.network(opset)
    built = build(registry.RECIPES[name], model, recipe_models.images())
    for before, after in ((model.graph.input, built.graph.input), (model.graph.output, built.graph.output)):
        assert [(value.name, value.type.tensor_type.elem_type) for value in before] == [
            (value.name, value.type.tensor_type.elem_type) for value in after
        ]
    assert cosine(model, built, recipe_models.images(seed=9)) > 0.99


def test_a_recipe_takes_what_another_one_made():
    model = recipe_models.network()
    once = build(DynamicInt8(operators="products"), model)
    twice = build(StaticQdq(operators="products"), once, recipe_models.images())
    assert {"DynamicQuantizeLinear", "QuantizeLinear"} <= operators(twice)
    assert cosine(model, twice, recipe_models.images(seed=9)) > 0.99


@pytest.mark.parametrize(("asked", "quantized"), [("all", True), ("products", False)])
def test_products_alone_are_quantized_if_asked_for(asked, quantized):
    built = build(StaticQdq(operators=asked), recipe_models.network(), recipe_models.images())
    pooled = next(node.output[0] for node in built.graph.node if node.op_type == "GlobalAveragePool")
    readers = {node.op_type for node in built.graph.node if pooled in node.input}
    assert (readers == {"QuantizeLinear"}) is quantized
    assert "QuantizeLinear" in operators(built)


class TestExclusion:
    @pytest.mark.parametrize("recipe", [StaticQdq(), DynamicInt8()])
    def test_excluded_nodes_stay_in_fp32(self, recipe):
        model, rows = recipe_models.network(), recipe_models.images()
        excluded = msgspec.structs.replace(recipe, exclude=("Gemm_5",))
        whole, part = (build(each, model, rows) for each in (recipe, excluded))
        for built, datatype in ((whole, TensorProto.INT8), (part, TensorProto.FLOAT)):
            matrices = [tensor for tensor in built.graph.initializer if sorted(tensor.dims) == [10, 16]]
            assert {tensor.data_type for tensor in matrices} == {datatype}

    def test_a_name_that_is_not_there_is_no_silent_success(self):
        with pytest.raises(NotBuilt, match="no node 'Gemm_99'"):
            build(StaticQdq(exclude=("Gemm_99",)), recipe_models.network(), recipe_models.images())

    def test_nothing_left(self):
        with pytest.raises(NotBuilt, match="can be quantized"):
            build(DynamicInt8(operators="products", exclude=("Gemm_5",)), recipe_models.network())


def test_dynamic_int8_lets_a_row_change_its_neighbours():
    """Why it is marked: the row beside them decides how coarse the others are."""
    model = uploads.mlp((16, 32, 8))
    rows = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    beside = rows.copy()
    beside[0] *= 1000

    def moved(built):
        (plain,), (other,) = answers(built, [{"x": rows}, {"x": beside}], Means())
        return np.abs(plain - other)[1:].max()

    assert moved(build(DynamicInt8(), model)) > 0.1
    assert moved(model) < 1e-4
    assert moved(build(StaticQdq(), model, [{"x": beside}])) < 1e-4


def test_only_dynamic_recipes_may_not_batch():
    assert {name for name, recipe in registry.RECIPES.items() if not recipe.may_batch} == {
        "int8-dynamic",
        "int8-dynamic-products",
    }
    assert {name for name, recipe in registry.RECIPES.items() if recipe.needs_rows} == set(STATIC)


def test_fp16_folds_what_does_not_fit_before():
    model, rows = recipe_models.detector(), recipe_models.images(size=16)
    assert cosine(model, build(Fp16(), model), rows) > 0.9999


def test_recipes_travel_as_json():
    for recipe in registry.RECIPES.values():
        assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe
    with pytest.raises(msgspec.ValidationError, match="percentile=99"):
        msgspec.json.decode(b'{"kind": "static-qdq", "percentile": 99}', type=Recipe)


class TestNotBuilt:
    @pytest.mark.parametrize("name", sorted(set(registry.RECIPES) - {"fp16"}))
    def test_nothing_to_quantize(self, name):
        rows = [{"x": np.array([["a", "b"]], dtype=object)}]
        with pytest.raises(NotBuilt, match=r"no operator|none of|no MatMul|no floating-point"):
            build(registry.RECIPES[name], uploads.text(), rows)

    def test_nothing_to_halve(self):
        with pytest.raises(NotBuilt, match="no fp32 constants"):
            build(Fp16(), uploads.elementwise())

    def test_no_rows(self):
        with pytest.raises(NotBuilt, match="needs calibration rows"):
            build(StaticQdq(), recipe_models.network())

    def test_rows_that_do_not_fit(self):
        with pytest.raises(NotBuilt, match="calibrating failed"):
            build(StaticQdq(), recipe_models.network(), [{"x": np.zeros((1, 2), np.float32)}])

    def test_a_run_that_does_not_end(self):
        """A product in front of a loop that goes on for ever."""
        model = uploads.endless()
        model.graph.node.insert(0, helper.make_node("MatMul", ["start", "w"], ["x"]))
        model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 0.0, 0.0, 1.0]))
        model.graph.input[0].name = "start"
        with pytest.raises(NotBuilt, match="longer than"):
            build(StaticQdq(), model, [{"start": np.ones(2, np.float32)}], Means(run_timeout_s=0.1))

    @pytest.mark.parametrize("name", sorted(ORT_BASED))
    def test_what_is_in_branches(self, name):
        """Built or refused with a reason, and what is built answers as before."""
        model = recipe_models.branches()
        rows = [{"x": uploads.weights(4, 8, seed=seed), "rate": np.array(16000)} for seed in range(2)]
        try:
            built = build(registry.RECIPES[name], model, rows)
        except NotBuilt as refused:
            assert "no operator" in str(refused) or "none of" in str(refused) or "no floating" in str(refused)  # noqa: PT017
        else:
            assert cosine(model, built, rows) > 0.99

    def test_a_cause_is_named(self):
        with pytest.raises(NotBuilt, match=r"sorting failed: KeyError\('a'\)"), not_built("sorting"):
            {}["a"]


@pytest.mark.parametrize(
    "make",
    [
        uploads.centred,
        uploads.conv,
        uploads.embedding,
        uploads.dynamically_quantized,
        uploads.shared_out,
        uploads.bomb,
        uploads.endless,
        uploads.custom_operator,
        uploads.with_outside_initializer,
        lambda: uploads.inside_if(helper.make_node("Relu", ["x"], ["b"])),
    ],
)
def test_whatever_comes_is_built_or_not_built(make):
    """No other exception, and nothing but a reason: rows that do not fit are among what may come."""
    for recipe in registry.RECIPES.values():
        with suppress(NotBuilt):
            assert build(recipe, make(), [{"x": np.ones((1,), np.float32)}], Means(run_timeout_s=1)).graph.node


@pytest.mark.parametrize("name", sorted(ORT_BASED))
def test_a_detector_builds(name):
    """Opset 12, weights in Constant nodes, upsampling: sized as the image that comes."""
    model, rows = recipe_models.detector(), recipe_models.images(size=16)
    try:
        built = build(registry.RECIPES[name], model, rows)
    except NotBuilt as refused:
        assert name == "int8-dynamic-products"
        assert "HardSigmoid" in str(refused)  # noqa: PT017 - the reason lists what is there
    else:
        assert cosine(model, built, recipe_models.images(size=24, seed=5)) > 0.98


def test_the_tools_leave_nothing_behind(capfd, cnn, tmp_path, monkeypatch):
    """Neither prints, nor a logging set-up, nor files: the child's streams, loggers and directory are its own."""
    model, rows, _, _ = cnn
    temporary, working = tmp_path / "temporary", tmp_path / "working"
    for directory in (temporary, working):
        directory.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    handlers = list(logging.root.handlers)
    for name in sorted(ORT_BASED):
        build(registry.RECIPES[name], model, rows)
    assert not list(tmp_path.glob("*/*"))
    assert logging.root.handlers == handlers
    assert not logging.root.manager.disable
    assert capfd.readouterr() == ("", "")
