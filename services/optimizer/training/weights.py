"""The arrays in a model file: reading them, putting others under the same names, and bytes that come out the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

Array = np.ndarray[Any, np.dtype[Any]]


def copied(model: ModelProto) -> ModelProto:
    """A model that may be changed while the original stays."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def floats(model: ModelProto) -> dict[str, Array]:
    """The float initializers by name."""
    return {tensor.name: array_of(tensor) for tensor in model.graph.initializer if tensor.data_type in _FLOATS}


_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


def array_of(tensor: TensorProto) -> Array:
    """The tensor's elements, as an array of its own."""
    return np.array(numpy_helper.to_array(tensor))


def replaced(model: ModelProto, arrays: Mapping[str, Array]) -> ModelProto:
    """A copy of the model with other initializers under their names, in the order of the file.

    Shapes may differ from before: then a graph input of the same name, as old files have it, is dropped with all
    recorded shapes of values.
    """
    copy = copied(model)
    same_shapes = True
    for tensor in copy.graph.initializer:
        if tensor.name in arrays:
            array = arrays[tensor.name]
            same_shapes = same_shapes and list(array.shape) == list(tensor.dims)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), tensor.name))
    if not same_shapes:
        names = {tensor.name for tensor in copy.graph.initializer}
        inputs = [value for value in copy.graph.input if value.name not in names]
        del copy.graph.value_info[:]
        del copy.graph.input[:]
        copy.graph.input.extend(inputs)
    return copy


def serialized(model: ModelProto) -> bytes:
    """The file: the same bytes for the same model, whichever process writes it."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content
