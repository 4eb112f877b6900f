"""Weight-only INT8: what it computes, what it leaves alone, and how closeness is measured."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from services.optimizer.sandbox import batching, measure, signature
from services.optimizer.sandbox.candidates import NotBuilt, quantize, weight_only_int8
from services.optimizer.sandbox.engine import Engine
from support import uploads

FLOAT = TensorProto.FLOAT


def engine(made):
    return Engine(made.SerializeToString(), signature.read(made), threads=1, run_timeout_s=5)


def cosine(made, rows=64):
    """Between a model and its INT8 form, over random rows."""
    quantized = weight_only_int8(made)
    x = np.random.default_rng(1).standard_normal((rows, made.graph.input[0].type.tensor_type.shape.dim[1].dim_value))
    pairs = [engine(form).run({"x": x.astype(np.float32)})[0].ravel() for form in (made, quantized)]
    return float(pairs[0] @ pairs[1] / np.linalg.norm(pairs[0]) / np.linalg.norm(pairs[1]))


def product(op, matrix, *more, **attributes):
    constants = {"w": matrix, **{f"c{i}": array for i, array in enumerate(more)}}
    return uploads.model(
        [helper.make_node(op, ["x", *constants], ["y"], **attributes)],
        {"x": (FLOAT, ("n", attributes.get("K", matrix.shape[attributes.get("transB", 0)])))},
        {"y": (FLOAT, ("n", None))},
        constants,
    )


@pytest.mark.parametrize("sizes", [(4, 4), (16, 1), (100, 7), (300, 129)])
def test_products_of_any_size(sizes):
    assert cosine(product("MatMul", uploads.weights(*sizes))) > 0.999


@pytest.mark.parametrize(
    "bias",
    [
        (),
        (uploads.weights(7),),
        (uploads.weights(1, 7),),
        (np.float32(0.5),),
    ],
)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_any_bias(bias, transposed):
    shape = (7, 40) if transposed else (40, 7)
    made = product("Gemm", uploads.weights(*shape), *bias, transB=transposed)
    assert cosine(made) > 0.999
    assert "Gemm" not in {node.op_type for node in weight_only_int8(made).graph.node}


def test_the_bytes_are_as_the_operator_wants_them():
    matrix = uploads.weights(20, 3)
    packed, scales = quantize(matrix, 16)
    assert (packed.shape, scales.shape) == ((3, 2, 16), (3, 2))
    restored = ((packed.astype(np.float32) - 128) * scales[:, :, None]).reshape(3, 32)[:, :20].T
    assert np.abs(restored - matrix).max() <= scales.max() / 2 + 1e-6
    zero, _ = quantize(np.zeros((16, 1), np.float32), 16)
    assert (zero == 128).all()


def test_the_file_shrinks_and_the_original_stays():
    made = uploads.mlp((512, 512, 10))
    before = made.SerializeToString()
    assert len(weight_only_int8(made).SerializeToString()) < len(before) / 3
    assert made.SerializeToString() == before


def test_a_matrix_with_another_use_stays_too():
    made = uploads.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Add", ["p", "w"], ["y"]),
        ],
        {"x": (FLOAT, ("n", 8))},
        {"y": (FLOAT, ("n", 8))},
        {"w": uploads.weights(8, 8)},
    )
    assert "w" in {tensor.name for tensor in weight_only_int8(made).graph.initializer}


@pytest.mark.parametrize(
    "make",
    [
        uploads.conv,
        uploads.text,
        lambda: product("Gemm", uploads.weights(4, 4), alpha=2.0),
        lambda: product("MatMul", uploads.weights(4, 4).astype(np.float64)),
        lambda: product("MatMul", np.full((4, 4), np.nan, np.float32)),
    ],
)
def test_what_can_not_be_quantized_says_so(make):
    with pytest.raises(NotBuilt, match="no MatMul or Gemm"):
        weight_only_int8(make())


def test_independence_holds_in_the_candidate():
    made = uploads.mlp((64, 64, 10))
    read = signature.read(made)
    found = batching.find(engine(made), read, cap=32, max_run_s=2, seed=1)
    assert batching.holds(engine(weight_only_int8(made)), read, found, 1)


class TestCloseness:
    def close(self, expected, found):
        close = measure.Closeness()
        close.add(0, np.asarray(expected), np.asarray(found))
        return close

    def test_the_same(self):
        close = self.close([1.0, 2.0], [1.0, 2.0])
        assert (close.max_abs_error, close.top1_agreement) == (0.0, 1.0)
        assert close.cosine == pytest.approx(1.0)

    def test_another_winner(self):
        close = self.close([1.0, 2.0], [2.0, 1.0])
        assert (close.max_abs_error, close.top1_agreement) == (1.0, 0.0)
        assert close.cosine == pytest.approx(0.8)

    def test_what_has_no_direction(self):
        assert self.close([0.0, 0.0], [0.0, 0.0]).cosine == 1.0
        assert self.close([0.0, 0.0], [1.0, 0.0]).cosine == 0.0
        assert self.close([np.nan, 1.0], [np.nan, 1.0]).cosine == 1.0
        assert self.close([np.inf, 1.0], [1.0, 1.0]).cosine == 0.0

    def test_labels(self):
        close = self.close([3], [3])
        assert (close.cosine, close.top1_agreement) == (None, 1.0)

    def test_a_matrix_is_no_score(self):
        assert self.close([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]]).top1_agreement is None


def test_speedup_is_a_geometric_mean():
    assert measure.speedup([1.0, 4.0], [2.0, 2.0]) == pytest.approx(1.0)
    assert measure.speedup([1.0], [0.5]) == pytest.approx(2.0)
