"""Models that recipes meet: a CNN that was trained, and graphs with what quantizers stumble over."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from support import uploads

FLOAT = TensorProto.FLOAT


def digits_cnn(directory):
    """The demo's CNN trained on digits, calibration rows, and held-out images with their labels."""
    from services.cli.demo import digits  # noqa: PLC0415 - it trains

    path, _ = digits.cached_model(directory)
    images, _, held_out, labels = digits.digits()
    rows = [{digits.INPUT: images[start : start + 32]} for start in range(0, 256, 32)]
    return onnx.load_model(path), rows, {digits.INPUT: held_out}, labels


def network(opset=20):
    """Conv, Relu, Conv, pool, and a Gemm with its bias as a matrix [1, 10]: `x[n, 3, 8, 8]` to `y[n, 10]`."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c1"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], transB=1),
    ]
    constants = {
        "w0": uploads.weights(8, 3, 3, 3),
        "b0": uploads.weights(8),
        "w1": uploads.weights(16, 8, 3, 3, seed=1),
        "w2": uploads.weights(10, 16, seed=2),
        "b2": uploads.weights(1, 10, seed=3),
    }
    return uploads.model(
        nodes, {"x": (FLOAT, ("n", 3, 8, 8))}, {"y": (FLOAT, ("n", 10))}, constants, opset=opset, ir_version=8
    )


def images(runs=3, rows=4, size=8, seed=0):
    """Rows for `network` and `detector`."""
    shape = (rows, 3, size, size)
    return [{"x": np.random.default_rng(seed + run).standard_normal(shape).astype(np.float32)} for run in range(runs)]


def detector():
    """Opset 12, weights in `Constant` nodes, a large variance to fold, and a map as large as the image out."""
    constants = {
        "w0": uploads.weights(8, 3, 3, 3),
        "scale": np.full(8, 500, np.float32),
        "bias": np.zeros(8, np.float32),
        "mean": np.zeros(8, np.float32),
        "variance": np.full(8, 1e7, np.float32),
        "w1": uploads.weights(8, 4, 2, 2, seed=1),
        "w2": uploads.weights(1, 4, 1, 1, seed=2),
        "scales": np.array([1, 1, 1, 1], np.float32),
        "roi": np.zeros(0, np.float32),
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in constants.items()
    ]
    nodes += [
        helper.make_node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c0", "scale", "bias", "mean", "variance"], ["n0"]),
        helper.make_node("HardSigmoid", ["n0"], ["h0"]),
        helper.make_node("Mul", ["n0", "h0"], ["m0"]),
        helper.make_node("ConvTranspose", ["m0", "w1"], ["t0"], strides=[2, 2]),
        helper.make_node("Resize", ["t0", "roi", "scales"], ["s0"]),
        helper.make_node("Conv", ["s0", "w2"], ["c1"]),
        helper.make_node("Sigmoid", ["c1"], ["y"]),
    ]
    free = ("n", 3, "height", "width")
    return uploads.model(nodes, {"x": (FLOAT, free)}, {"y": (FLOAT, (None,) * 4)}, opset=12, ir_version=7)


def branches():
    """All that computes is in the branches of an If, as in Silero VAD."""
    branch = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w{index}"], [f"b{index}"])],
            f"branch{index}",
            [],
            [helper.make_tensor_value_info(f"b{index}", FLOAT, ["n", 4])],
            [onnx.numpy_helper.from_array(uploads.weights(8, 4, seed=index), f"w{index}")],
        )
        for index in range(2)
    ]
    nodes = [
        helper.make_node("Equal", ["rate", "wide"], ["on"]),
        helper.make_node("If", ["on"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]
    inputs = {"x": (FLOAT, ("n", 8)), "rate": (TensorProto.INT64, ())}
    return uploads.model(nodes, inputs, {"y": (FLOAT, ("n", 4))}, {"wide": np.array(16000)})
