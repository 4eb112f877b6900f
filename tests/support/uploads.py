"""Files that people upload: models of every shape, and what is not, or not only, a model."""

from __future__ import annotations

import io
import pickle
import zipfile
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FP32, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(nodes, inputs, outputs, constants=None, domains=(), opset=20, **fields):
    """A model file; inputs and outputs are `{name: (type, shape)}`, a type None for what is no tensor."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()],
        [helper.make_tensor_value_info(name, *about) for name, about in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, **{"ir_version": 9, **fields})


def elementwise(op="Relu", shape=("batch", 4), **fields):
    """`y = op(x)`."""
    node = helper.make_node(op, ["x"], ["y"], **fields)
    return model([node], {"x": (FP32, shape)}, {"y": (FP32, shape)})


def mlp(sizes=(8, 16, 4)):
    """Layers of Gemm and Relu: rows are independent along axis 0."""
    nodes, constants, last = [], {}, "x"
    for index, (rows, columns) in enumerate(pairwise(sizes)):
        constants[f"w{index}"], constants[f"b{index}"] = weights(columns, rows, seed=index), weights(columns)
        output = "y" if index == len(sizes) - 2 else f"h{index}"
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [output], transB=1))
        if output != "y":
            nodes.append(helper.make_node("Relu", [output], [f"a{index}"]))
            last = f"a{index}"
    return model(nodes, {"x": (FP32, ("batch", sizes[0]))}, {"y": (FP32, ("batch", sizes[-1]))}, constants)


def conv():
    """A convolution over images of any size, averaged."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    shapes = {"x": (FP32, ("n", 3, "height", "width"))}, {"y": (FP32, ("n", 5))}
    return model(nodes, *shapes, {"w": weights(5, 3, 3, 3)})


def centred():
    """`y = x - mean(x over the batch)`: every row's answer depends on the others."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    shape = (FP32, ("batch", 4))
    return model(nodes, {"x": shape}, {"y": shape}, {"axes": np.array([0])})


def shared_out():
    """`y = x / number of rows`: depends on how many there are, not on what is in them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
        helper.make_node("Cast", ["s"], ["n"], to=FP32),
        helper.make_node("Div", ["x", "n"], ["y"]),
    ]
    shape = (FP32, ("batch", 4))
    return model(nodes, {"x": shape}, {"y": shape})


def recurrent():
    """`x[B, 6]` and a state `[2, B, 3]`: rows lie along axis 0 of one and axis 1 of the other; dims have no names."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["state", "p"], ["s"]),
        helper.make_node("Tanh", ["s"], ["next"]),
        helper.make_node("ReduceSum", ["next", "axes"], ["y"], keepdims=0),
    ]
    return model(
        nodes,
        {"x": (FP32, (None, 6)), "state": (FP32, (2, None, 3))},
        {"y": (FP32, (None, 3)), "next": (FP32, (2, None, 3))},
        {"w": weights(6, 3), "axes": np.array([0])},
    )


def embedding(words=100):
    """Mean of word vectors for `ids[B, T]`; an id from `words` on raises."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["v"]),
        helper.make_node("ReduceMean", ["v", "axes"], ["y"], keepdims=0),
    ]
    constants = {"table": weights(words, 6), "axes": np.array([1])}
    return model(nodes, {"ids": (INT64, ("batch", "tokens"))}, {"y": (FP32, ("batch", 6))}, constants)


def text():
    """`y = x` on strings."""
    shape = (TensorProto.STRING, ("batch", 2))
    return model([helper.make_node("Identity", ["x"], ["y"])], {"x": shape}, {"y": shape})


def dynamically_quantized():
    """`DynamicQuantizeLinear` takes one scale for the whole batch: a huge row ruins its neighbours."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    shape = (FP32, ("batch", 4))
    return model(nodes, {"x": shape}, {"y": shape})


def endless(shape=("n",)):
    """A Loop that goes on for ever."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c_out"]), helper.make_node("Add", ["s", "s"], ["s_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("c", BOOL, []),
            helper.make_tensor_value_info("s", FP32, shape),
        ],
        [helper.make_tensor_value_info("c_out", BOOL, []), helper.make_tensor_value_info("s_out", FP32, shape)],
    )
    node = helper.make_node("Loop", ["", "on", "x"], ["y"], body=body)
    return model([node], {"x": (FP32, shape)}, {"y": (FP32, shape)}, {"on": np.array(True)})


def slow(trips=250_000):
    """A model whose every run takes about a second: a Loop that ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c_out"]), helper.make_node("Cos", ["s"], ["s_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("c", BOOL, []),
            helper.make_tensor_value_info("s", FP32, [1]),
        ],
        [
            helper.make_tensor_value_info("c_out", BOOL, []),
            helper.make_tensor_value_info("s_out", FP32, [1]),
        ],
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)
    one = (FP32, (1,))
    return model([node], {"x": one}, {"y": one}, {"trips": np.array(trips)})


def bomb(elements=1 << 40):
    """A few bytes that ask for terabytes."""
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["big"]), helper.make_node("Add", ["x", "big"], ["y"])]
    return model(nodes, {"x": (FP32, (1,))}, {"y": (FP32, (None,))}, {"s": np.array([elements])})


def custom_operator(domain="acme.corp"):
    return model(
        [helper.make_node("Magic", ["x"], ["y"], domain=domain)],
        {"x": (FP32, ("n",))},
        {"y": (FP32, ("n",))},
        domains=[domain],
    )


def inside_if(node):
    """The node in a branch of an If."""
    branch = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("b", FP32, None)])
    chosen = helper.make_node("If", ["on"], ["y"], then_branch=branch, else_branch=branch)
    return model([chosen], {"on": (BOOL, ())}, {"y": (FP32, ("n",))})


def outside(location="/etc/passwd"):
    """A tensor whose data lie in another file."""
    tensor = TensorProto(name="w", data_type=FP32, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def with_outside_initializer():
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (FP32, ("n", 4))}, {"y": (FP32, ("n", 4))})
    made.graph.initializer.append(outside("../../secrets.bin"))
    return made


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def pickled():
    return pickle.dumps({"weights": [1.0, 2.0]})


def safetensors():
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + bytes(4)


def magika():
    """The model of the package `magika`, as a file."""
    package = Path(find_spec("magika").origin).parent
    return next(package.glob("models/*/model.onnx")).read_bytes()
