"""Every operator computes what ONNX Runtime computes; what is not supported is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from services.optimizer.training.errors import UnsupportedModel
from services.optimizer.training.graph import Network
from services.optimizer.training.operators import OPERATORS
from support.trained import answers

torch.set_num_threads(1)

X = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
FLAT = X.reshape(2, 144)[:, :12].copy()
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def weights(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def model(operator, x, *constants, opset=20, outputs=1, **attributes):
    """One node on `x`; constants are initializers, None is an input left out."""
    names = ["x", *("" if array is None else f"c{index}" for index, array in enumerate(constants))]
    given = [numpy_helper.from_array(array, f"c{i}") for i, array in enumerate(constants) if array is not None]
    results = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(operator, names, results, "node", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [onnx.ValueInfoProto(name=name) for name in results],
        given,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def agree(made, x):
    network = Network(made)
    mine = network.predict({"x": x})
    theirs = answers(made, {"x": x})
    for name, wanted in zip(network.outputs, theirs, strict=True):
        assert mine[name].shape == wanted.shape
        assert mine[name].dtype == wanted.dtype
        np.testing.assert_allclose(mine[name], wanted, rtol=1e-5, atol=1e-5)


UNARY = [
    "Abs",
    "Ceil",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsNaN",
    "LeakyRelu",
    "LogSoftmax",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Flatten",
    "Shape",
    "Size",
    "Transpose",
    "Trilu",
]  # fmt: skip - names


@pytest.mark.parametrize("operator", UNARY)
def test_operators_of_one_input(operator):
    agree(model(operator, X), X)


@pytest.mark.parametrize("operator", ["Log", "Sqrt"])
def test_operators_of_positive_numbers(operator):
    agree(model(operator, np.abs(X) + 1), np.abs(X) + 1)


BINARY = [
    "Add",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mul",
    "PRelu",
    "Sub",
]


@pytest.mark.parametrize("operator", [*BINARY, "Sum"])
@pytest.mark.parametrize("shape", [(1,), (6,), (4, 1, 6)])
def test_operators_of_two_inputs_broadcast(operator, shape):
    agree(model(operator, X, weights(*shape)), X)


def test_whole_numbers_divide_towards_zero_and_wrap_around():
    x = ints(-7, -2, 3, 8)
    agree(model("Div", x, ints(2, 3, -2, 5)), x)
    agree(model("Mod", x, ints(2, 3, -2, 5)), x)
    agree(model("Mod", X, weights(6), fmod=1), X)


def test_logic():
    x = X > 0
    for operator in ("And", "Or", "Xor"):
        agree(model(operator, x, weights(6) > 0), x)
    agree(model("Not", x), x)
    agree(model("Where", x, weights(6), weights(6, seed=2)), x)


def test_casts_and_powers():
    for to in (TensorProto.DOUBLE, INT64, TensorProto.BOOL, TensorProto.INT32):
        agree(model("Cast", X, to=to), X)
    agree(model("Pow", np.abs(X), np.array(1.5, np.float32)), np.abs(X))
    agree(model("Pow", X, ints(2)), X)


def test_bounds_are_inputs_or_attributes():
    low, high = np.array(-0.5, np.float32), np.array(0.5, np.float32)
    agree(model("Clip", X, low, high), X)
    agree(model("Clip", X, None, high), X)
    agree(model("Clip", X, opset=10, min=-0.5, max=0.25), X)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 1], "strides": [2, 1]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
    ],
)
def test_convolutions(attributes):
    agree(model("Conv", X, weights(5, 4, 3, 3), weights(5), **attributes), X)
    agree(model("Conv", X, weights(6, 2, 2, 3), group=2, **attributes), X)


def test_convolutions_over_one_and_three_axes():
    agree(model("Conv", X[..., 0], weights(3, 4, 3), weights(3), pads=[1, 1]), X[..., 0])
    cube = X[:, :, :, :, None].repeat(3, -1)
    agree(model("Conv", cube, weights(3, 4, 2, 2, 2)), cube)


def test_transposed_convolutions():
    agree(model("ConvTranspose", X, weights(4, 3, 3, 3), weights(3), strides=[2, 2], pads=[1, 1, 1, 1]), X)
    more = {"strides": [2, 2], "output_padding": [1, 1], "group": 2}
    agree(model("ConvTranspose", X, weights(4, 3, 3, 3), **more), X)
    with pytest.raises(UnsupportedModel, match="ConvTranspose with uneven or automatic pads"):
        Network(model("ConvTranspose", X, weights(4, 3, 3, 3), pads=[0, 1, 1, 0])).predict({"x": X})


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2]},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [0, 0, 1, 1]},
        {"strides": [2, 2], "ceil_mode": 1},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ],
)
def test_pools(operator, attributes):
    agree(model(operator, X, kernel_shape=[3, 3], **attributes), X)
    if operator == "AveragePool":
        agree(model(operator, X, kernel_shape=[3, 3], count_include_pad=1, **attributes), X)


def test_normalizations():
    agree(model("BatchNormalization", X, weights(4), weights(4), weights(4), np.abs(weights(4)) + 0.1), X)
    agree(model("InstanceNormalization", X, weights(4), weights(4)), X)
    agree(model("LayerNormalization", X, weights(6), weights(6)), X)
    agree(model("LayerNormalization", X, weights(6, 6), axis=2, epsilon=1e-3), X)


def test_products():
    agree(model("Gemm", FLAT, weights(12, 5), weights(5)), FLAT)
    agree(model("Gemm", FLAT, weights(5, 12), weights(2, 5), transB=1, alpha=0.5, beta=2.0), FLAT)
    agree(model("Gemm", FLAT, weights(2, 5), transA=1), FLAT)
    agree(model("MatMul", X, weights(6, 3)), X)
    agree(model("MatMul", X, weights(4, 6, 3)), X)
    agree(model("MatMul", X, weights(6)), X)


REDUCTIONS = sorted(name for name in OPERATORS if name.startswith("Reduce"))


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions_of_old_and_new_opsets(operator):
    x = np.abs(X)
    agree(model(operator, x), x)
    agree(model(operator, x, ints(1, -1), keepdims=0), x)
    agree(model(operator, x, ints(), noop_with_empty_axes=1), x)
    agree(model(operator, x, opset=11, axes=[2], keepdims=1), x)


def test_extremes_by_index():
    for operator in ("ArgMax", "ArgMin"):
        agree(model(operator, X, axis=1, keepdims=0), X)


def test_softmax_of_old_opsets_goes_over_all_axes_behind():
    agree(model("Softmax", X, opset=11, axis=2), X)
    agree(model("LogSoftmax", X, opset=9), X)


def test_shapes():
    agree(model("Reshape", X, ints(0, -1, 12)), X)
    agree(model("Squeeze", X[:, :1], ints(1)), X[:, :1])
    agree(model("Squeeze", X[:, :1]), X[:, :1])
    agree(model("Squeeze", X[:, :1], opset=11, axes=[1]), X[:, :1])
    agree(model("Unsqueeze", X, ints(-1, 0)), X)
    agree(model("Unsqueeze", X, opset=11, axes=[1]), X)
    agree(model("Transpose", X, perm=[0, 2, 3, 1]), X)
    agree(model("Expand", X[:, :1], ints(2, 4, 1, 6)), X[:, :1])
    agree(model("Tile", X, ints(1, 2, 1, 3)), X)
    agree(model("Flatten", X, axis=2), X)
    agree(model("Shape", X, start=1, end=-1), X)
    agree(model("ConstantOfShape", ints(2, 3), value=numpy_helper.from_array(np.array([2.5], np.float32))), ints(2, 3))
    agree(model("Range", np.array(2, np.int64), np.array(9, np.int64), np.array(3, np.int64)), np.array(2, np.int64))


def test_parts():
    agree(model("Concat", X, weights(2, 3, 6, 6), axis=1), X)
    agree(model("Slice", X, ints(1, -3), ints(3, 1000), ints(1, 3)), X)
    agree(model("Slice", X, ints(-1, 0), ints(-1000, 5), ints(2, 3), ints(-2, 2)), X)
    agree(model("Slice", X, opset=9, starts=[1], ends=[3], axes=[1]), X)
    agree(model("Split", X, ints(1, 3), axis=1, outputs=2), X)
    agree(model("Split", X[:, :, :5], axis=2, outputs=3, num_outputs=3), X[:, :, :5])  # 2, 2 and 1
    agree(model("Split", X, opset=11, axis=1, split=[2, 2], outputs=2), X)
    agree(model("Gather", X, ints(2, -1), axis=1), X)
    agree(model("Gather", X, np.array(-1, np.int64), axis=3), X)
    agree(model("Trilu", X, np.array(1, np.int64), upper=0), X)


def test_pads():
    agree(model("Pad", X, ints(0, 1, 2, 0, 0, 0, 1, 3), np.array(1.5, np.float32)), X)
    agree(model("Pad", X, ints(0, 0, 2, 1, 0, 0, 1, 3), mode="reflect"), X)
    agree(model("Pad", X, ints(0, 1, 0, 2), None, ints(-2, -1), mode="edge"), X)
    agree(model("Pad", X, ints(0, 0, 2, 1, 0, 0, 1, 3), mode="wrap"), X)
    agree(model("Pad", X, opset=10, pads=[0, 0, 1, 1, 0, 0, 1, 1]), X)


def test_resizing():
    scales = np.array([1, 1, 2, 2], np.float32)
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    agree(model("Resize", X, None, scales, **nearest), X)
    agree(model("Resize", X, None, None, ints(2, 4, 9, 3), **nearest), X)
    agree(model("Resize", X, None, scales, mode="nearest"), X)
    for coordinates in ("half_pixel", "align_corners"):
        linear = {"mode": "linear", "coordinate_transformation_mode": coordinates}
        agree(model("Resize", X, None, None, ints(2, 4, 11, 7), **linear), X)
    with pytest.raises(UnsupportedModel, match="Resize mode cubic"):
        Network(model("Resize", X, None, scales, mode="cubic")).predict({"x": X})


def test_constants_in_the_graph():
    for value in ({"value_float": 2.5}, {"value_ints": [1, 2]}, {"value": numpy_helper.from_array(weights(3))}):
        made = model("Identity", X)
        made.graph.node.append(helper.make_node("Constant", [], ["k"], **value))
        made.graph.output.append(onnx.ValueInfoProto(name="k"))
        agree(onnx.shape_inference.infer_shapes(made), X)


def test_dropout_does_nothing_in_inference():
    agree(model("Dropout", X), X)
    made = model("Dropout", X, np.array(0.5, np.float32), np.array([True]).reshape(()))
    with pytest.raises(UnsupportedModel, match="Dropout in training mode"):
        Network(made).predict({"x": X})


def test_what_is_not_supported_is_named_all_at_once():
    made = model("LSTM", X)
    made.graph.node.extend(
        [
            helper.make_node("NonZero", ["x"], ["a"]),
            helper.make_node("NonZero", ["x"], ["b"]),
            helper.make_node("MatMulNBits", ["x"], ["c"], domain="com.microsoft"),
            helper.make_node("MaxPool", ["x"], ["d", "e"], kernel_shape=[2, 2]),
        ]
    )
    with pytest.raises(UnsupportedModel) as raised:
        Network(made)
    assert raised.value.found == ("LSTM", "MaxPool with 2 outputs", "NonZero (2)", "com.microsoft.MatMulNBits")
    assert raised.value.code == "unsupported_operator"


def test_names_from_a_file_reach_nothing_but_the_table():
    for name in ("__class__", "eval", "Call", "_unary"):
        made = model("Relu", X)
        made.graph.node[0].op_type = name
        with pytest.raises(UnsupportedModel, match=name):
            Network(made)


def test_every_operator_of_the_table_was_compared_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in OPERATORS if f'"{name}"' not in source and name not in REDUCTIONS] == []
