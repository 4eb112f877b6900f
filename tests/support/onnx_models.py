"""Small ONNX models made on the spot, with the signature that the optimizer would find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from shared.signature import Signature, TensorSpec

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


DIGITS = Signature(
    inputs=(TensorSpec(name="image", datatype="FP32", shape=("rows", 4), batch_axis=0),),
    outputs=(TensorSpec(name="class", datatype="INT64", shape=("rows",), batch_axis=0),),
)


@dataclass(frozen=True)
class OnnxModel:
    """A model file and what it takes and gives."""

    content: bytes
    signature: Signature
    batch_cap: int = 32


def identity(datatype: str, columns: int = 3) -> OnnxModel:
    """`y = x`, row by row, of any datatype."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _model([node], datatype, columns)


def linear(columns: int = 4, *, seed: int = 0) -> OnnxModel:
    """`y = x @ w`, FP32, row by row."""
    weights = np.random.default_rng(seed).standard_normal((columns, columns)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return _model([node], "FP32", columns, [numpy_helper.from_array(weights, "w")])


def gather(rows: int = 8) -> OnnxModel:
    """`y = table[x]`, which raises for an index beyond the table."""
    table = np.arange(rows, dtype=np.float32)
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return _model([node], "INT64", 1, [numpy_helper.from_array(table, "table")], "FP32")


def digits() -> OnnxModel:
    """The model of the documents' examples: `class` is the index of the largest of each `image`'s four numbers."""
    node = helper.make_node("ArgMax", ["image"], ["class"], axis=1, keepdims=0)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 4])
    graph = helper.make_graph(
        [node], "digits", [image], [helper.make_tensor_value_info("class", TensorProto.INT64, ["rows"])]
    )
    return OnnxModel(_bytes(graph), DIGITS)


def counting_loop() -> OnnxModel:
    """`y = x + trips`, one trip at a time: as slow as the INT64 `trips` says. Never batched."""
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["trips"], ["count"]),
            helper.make_node("Loop", ["count", "", "x"], ["y"], body=_adding_one([1])),
        ],
        "counting_loop",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("trips", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    signature = Signature(
        inputs=(
            TensorSpec(name="x", datatype="FP32", shape=(1,)),
            TensorSpec(name="trips", datatype="INT64", shape=(1,)),
        ),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
    )
    return OnnxModel(_bytes(graph), signature, batch_cap=1)


def slow_rows(trips: int = 1_500_000) -> OnnxModel:
    """`y = x + trips`, FP32, row by row, and every run takes seconds, however many rows it has."""
    loop = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=_adding_one(["batch", 2]))
    return _model([loop], "FP32", 2, [numpy_helper.from_array(np.array(trips, np.int64), "trips")])


def _adding_one(dims):
    """The body of a loop: `next = sum + 1`, as long as the loop goes on."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, dims),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, dims),
        ],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )


def _model(nodes, datatype, columns, initializers=(), output_datatype=None):
    output_datatype = output_datatype or datatype
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", ONNX_TYPES[datatype], ["batch", columns])],
        [helper.make_tensor_value_info("y", ONNX_TYPES[output_datatype], ["batch", columns])],
        list(initializers),
    )
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=("batch", columns), batch_axis=0),),
        outputs=(TensorSpec(name="y", datatype=output_datatype, shape=("batch", columns), batch_axis=0),),
    )
    return OnnxModel(_bytes(graph), signature)


def _bytes(graph):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return model.SerializeToString()
