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
from services.optimizer.recipes.packing import int4, int8
from services.optimizer.recipes.running import Means, answers
from support import uploads

MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.floats(-1e3, 1e3, width=32),
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


@given(MATRICES)
def test_int4_keeps_a_blocks_largest_number(matrix):
    restored, _ = unpacked(4, matrix, 16)
    column, far = 0, np.abs(matrix[:16, 0]).argmax()
    assert restored[far, column] == pytest.approx(matrix[far, column], rel=1e-5, abs=1e-30)


def test_onnx_runtime_reads_the_bytes_as_they_are_meant():
    matrix = uploads.weights(40, 7)
    made = product(matrix)
    x = np.random.default_rng(1).standard_normal((64, 40)).astype(np.float32)
    for bits in (4, 8):
        ((found,),) = answers(build(WeightOnly(bits=bits, block_size=16), made), [{"x": x}], Means())
        expected = x @ unpacked(bits, matrix, 16)[0]
        # The kernel rounds activations to INT8 as well.
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def product(matrix, constants=None, nodes=()):
    return uploads.model(
        [*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ("n", matrix.shape[0]))},
        {"y": (TensorProto.FLOAT, ("n", matrix.shape[1]))},
        {"w": matrix} if constants is None else constants,
    )


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
    node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(matrix))
    made = product(matrix, {}, [node])
    before = made.SerializeToString()
    built = build(WeightOnly(bits=8), made)
    assert [node.op_type for node in built.graph.node] == ["MatMulNBits"]
    assert "w" not in {tensor.name for tensor in built.graph.initializer}
    assert made.SerializeToString() == before
