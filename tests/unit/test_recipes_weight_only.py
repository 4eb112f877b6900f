"""Weight-only INT8 and INT4: the packed bytes, what block sizes do, and where weights are found."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from services.optimizer.recipes.build import build
from services.optimizer.recipes.configs import WeightOnly
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.recipes.packing import int4, int8
from services.optimizer.recipes.running import Means, answers
from services.optimizer.sandbox import batching, signature
from services.optimizer.sandbox.engine import Engine
from support import uploads

FLOAT = TensorProto.FLOAT
INT8 = WeightOnly(bits=8)
MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.floats(-1e3, 1e3, width=32),
)


def engine(made):
    return Engine(made.SerializeToString(), signature.read(made), threads=1, run_timeout_s=5)


def cosine(made, rows=64):
    """Between a model and its INT8 form, over random rows."""
    quantized = build(INT8, made)
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


def unpacked(bits, matrix, block):
    """The matrix as the operator reads it."""
    packed, scales = (int8 if bits == 8 else int4)(matrix, block)
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], block)
    whole = packed.astype(np.float32) - 2 ** (bits - 1)
    return (whole * scales[:, :, None]).reshape(matrix.shape[1], -1)[:, : matrix.shape[0]].T, scales


@given(MATRICES, st.sampled_from([16, 32]))
def test_int8_is_within_half_a_step(matrix, block):
    restored, scales = unpacked(8, matrix, block)
    assert np.abs(restored - matrix).max() <= scales.max() * 0.5001 + 1e-30


@given(MATRICES, st.sampled_from([16, 32]))
def test_int4_is_within_half_a_step_but_for_the_far_end(matrix, block):
    restored, scales = unpacked(4, matrix, block)
    assert np.abs(restored - matrix).max() <= np.abs(scales).max() * 1.0001 + 1e-30


@pytest.mark.parametrize("pack", [int4, int8])
def test_zeros_stay_zeros(pack):
    packed, scales = pack(np.zeros((20, 3), np.float32), 16)
    assert packed.shape == (3, 2, 16 if pack is int8 else 8)
    assert scales.shape == (3, 2)
    assert not scales.any()
    assert set(packed.ravel().tolist()) == {128 if pack is int8 else 0x88}


@given(MATRICES)
def test_int4_keeps_a_blocks_largest_number(matrix):
    restored, _ = unpacked(4, matrix, 16)
    column, far = 0, np.abs(matrix[:16, 0]).argmax()
    assert restored[far, column] == pytest.approx(matrix[far, column], rel=1e-5, abs=1e-30)


def test_onnx_runtime_reads_the_bytes_as_they_are_meant():
    matrix = uploads.weights(40, 7)
    made = product("MatMul", matrix)
    x = np.random.default_rng(1).standard_normal((64, 40)).astype(np.float32)
    for bits in (4, 8):
        ((found,),) = answers(build(WeightOnly(bits=bits, block_size=16), made), [{"x": x}], Means())
        expected = x @ unpacked(bits, matrix, 16)[0]
        # The kernel rounds activations to INT8 as well.
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_smaller_blocks_are_closer_and_larger():
    made = uploads.mlp((256, 256, 16))
    x = [{"x": np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)}]
    ((expected,),) = answers(made, x, Means())
    built = [build(WeightOnly(bits=4, block_size=size), made) for size in (16, 64, 256)]
    errors = [np.linalg.norm(answers(each, x, Means())[0][0] - expected) for each in built]
    sizes = [each.ByteSize() for each in built]
    assert errors == sorted(errors)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < made.ByteSize() / 4


def test_int4_is_smaller_than_int8():
    made = uploads.mlp((256, 256, 16))
    four, eight = (build(WeightOnly(bits=bits), made).ByteSize() for bits in (4, 8))
    assert four < eight * 0.6


def test_weights_in_constant_nodes_are_found():
    matrix = uploads.weights(16, 4)
    made = product("MatMul", matrix)
    del made.graph.initializer[:]
    node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(matrix))
    made.graph.node.insert(0, node)
    before = made.SerializeToString()
    built = build(WeightOnly(bits=8), made)
    assert [node.op_type for node in built.graph.node] == ["MatMulNBits"]
    assert "w" not in {tensor.name for tensor in built.graph.initializer}
    assert made.SerializeToString() == before


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
    assert "Gemm" not in {node.op_type for node in build(INT8, made).graph.node}


def test_the_file_shrinks_and_the_original_stays():
    made = uploads.mlp((512, 512, 10))
    before = made.SerializeToString()
    assert len(build(INT8, made).SerializeToString()) < len(before) / 3
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
    assert "w" in {tensor.name for tensor in build(INT8, made).graph.initializer}


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
        build(INT8, make())


def test_independence_holds_in_the_candidate():
    made = uploads.mlp((64, 64, 10))
    read = signature.read(made)
    found = batching.find(engine(made), read, cap=32, max_run_s=2, seed=1)
    assert batching.holds(engine(build(INT8, made)), read, found, 1)
