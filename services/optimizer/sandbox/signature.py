"""The signature of a model, read from its graph: names, datatypes and shapes, free dimensions by their names.

Batch axes are not here: they are found by running (`batching`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx import TensorProto, ValueInfoProto

from services.optimizer.rejections import Rejection
from shared.signature import Signature, TensorSpec
from shared.tensors import MAX_RANK

if TYPE_CHECKING:
    from onnx import ModelProto

    from shared.signature import Dim
    from shared.tensors import Datatype

_DATATYPES: Final[dict[int, Datatype]] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.STRING: "BYTES",
}
_MAX_TENSORS: Final = 64
_MAX_NAME_CHARS: Final = 200
_MAX_SYMBOL_CHARS: Final = 64
_NO_SYMBOL: Final = frozenset({"", "?", "-1", "None", "none", "unk", "dynamic"})
"""What exporters write for "free" that does not mean "the same size as its namesakes"."""


def read(model: ModelProto) -> Signature:
    """The inputs that a caller must give, and the outputs.

    Raises:
        Rejection: something that the protocol can't carry, such as a sequence or a tensor of unknown rank.
    """
    initialized = {tensor.name for tensor in model.graph.initializer}
    initialized |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    outputs = list(model.graph.output)
    for what, values in (("inputs", inputs), ("outputs", outputs)):
        if not 0 < len(values) <= _MAX_TENSORS:
            raise Rejection("unsupported_input", f"The model has {len(values)} {what}; it may have 1 to {_MAX_TENSORS}")
        if len({value.name for value in values}) != len(values):
            raise Rejection("unsupported_input", f"Two {what} have the same name")
    return Signature(
        inputs=tuple(_spec(value, "Input") for value in inputs),
        outputs=tuple(_spec(value, "Output") for value in outputs),
    )


def _spec(value: ValueInfoProto, what: str) -> TensorSpec:
    name = value.name
    if not 0 < len(name) <= _MAX_NAME_CHARS or not name.isprintable():
        raise Rejection("unsupported_input", f"{what} {name[:100]!r} has an unusable name")
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise Rejection("unsupported_input", f"{what} {name!r} is not a tensor, but of {kind or 'no type'}")
    tensor = value.type.tensor_type
    datatype = _DATATYPES.get(tensor.elem_type)
    if datatype is None:
        known = tensor.elem_type in TensorProto.DataType.values()
        called = TensorProto.DataType.Name(tensor.elem_type) if known else str(tensor.elem_type)
        raise Rejection("unsupported_input", f"{what} {name!r} has elements of type {called}")
    if not tensor.HasField("shape"):
        raise Rejection("unsupported_input", f"{what} {name!r} has no shape, so its rank is unknown")
    if len(tensor.shape.dim) > MAX_RANK:
        raise Rejection("unsupported_input", f"{what} {name!r} has rank {len(tensor.shape.dim)}")
    return TensorSpec(name=name, datatype=datatype, shape=tuple(_dim(dim) for dim in tensor.shape.dim))


def _dim(dim: object) -> Dim:
    size = int(getattr(dim, "dim_value", 0))
    symbol = str(getattr(dim, "dim_param", ""))
    if size > 0:
        return size
    usable = symbol not in _NO_SYMBOL and len(symbol) <= _MAX_SYMBOL_CHARS and symbol.isprintable()
    return symbol if usable else -1
