"""A graph as a TensorFlow SavedModel, in a zip: interpreted with TensorFlow's operators, traced, saved, loaded again.

Only where the extra `tensorflow` is installed. Sizes are tensors there, so shapes that a graph computes stay free.
Inputs and outputs go by the names of the ONNX file where TensorFlow takes them; the signature `serving_default` has
them all. What `OPERATORS` does not have is refused, all of it by name.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before it is imported: its lines are for its developers
import numpy as np
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from services.optimizer.rejections import Rejection
from services.optimizer.sandbox.tensorflow_operators import OPERATORS, Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import ModelProto

    from services.optimizer.sandbox.engine import Feeds
    from shared.signature import Signature
    from shared.tensors import Array

_DIRECTORY: Final = "savedmodel"
_ONNX: Final = ("", "ai.onnx")
_LARGE: Final = 64
"""Elements from which on a constant is a variable: the graph itself may have 2 GiB."""
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_]")
_FIXED_TIME: Final = (1980, 1, 1, 0, 0, 0)


def built(model: ModelProto, found: Signature) -> tuple[bytes, Callable[[Feeds], list[Array]]]:
    """The zip, and what TensorFlow makes of it once it has loaded it.

    Raises:
        Rejection: operators are not covered, by name, or TensorFlow does not take the graph.
    """
    _check(model)
    names = {spec.name: _NO_NAME.sub("_", spec.name) for spec in found.inputs}
    module = _Network(model, names)
    wanted = [
        tf.TensorSpec(
            [
                dim if isinstance(dim, int) and dim > 0 and axis != spec.batch_axis else None
                for axis, dim in enumerate(spec.shape)
            ],
            tf.dtypes.as_dtype(_dtype(model, spec.name)),
            name=names[spec.name],
        )
        for spec in found.inputs
    ]
    try:
        serving = tf.function(module.answer).get_concrete_function(*wanted)
        tf.saved_model.save(module, _DIRECTORY, signatures={"serving_default": serving})
        again: Any = tf.saved_model.load(_DIRECTORY)
    except Exception as err:  # TensorFlow raises all kinds
        raise Rejection("not_exportable", f"TensorFlow does not take the graph: {str(err)[:600]}") from err
    loaded = again.signatures["serving_default"]

    def answer(feeds: Feeds) -> list[Array]:
        outputs = loaded(**{names[name]: tf.constant(array) for name, array in feeds.items()})
        return [np.asarray(outputs[_output(index)].numpy()) for index in range(len(found.outputs))]

    return _zipped(Path(_DIRECTORY)), answer


def _output(index: int) -> str:
    return f"output_{index}"


def _check(model: ModelProto) -> None:
    strange = Counter(
        node.op_type[:100] if node.domain in _ONNX else f"{node.domain[:100]}.{node.op_type[:100]}"
        for node in model.graph.node
        if node.domain not in _ONNX or node.op_type not in OPERATORS
    )
    if strange:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(strange.items()))
        raise Rejection("not_exportable", f"Operators that are not covered: {named}")


def _dtype(model: ModelProto, name: str) -> Any:
    kind = next(value.type.tensor_type.elem_type for value in model.graph.input if value.name == name)
    return helper.tensor_dtype_to_np_dtype(kind)


class _Network(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """The graph, its large constants as variables."""

    def __init__(self, model: ModelProto, names: dict[str, str]) -> None:
        super().__init__()
        self._nodes = list(model.graph.node)
        self._inputs = list(names)
        self._outputs = [value.name for value in model.graph.output]
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        large = {name for name, array in arrays.items() if array.size > _LARGE and array.dtype.kind == "f"}
        self.weights = [tf.Variable(arrays[name], trainable=False) for name in sorted(large)]
        self._weights = dict(zip(sorted(large), self.weights, strict=True))
        self._constants = {name: array for name, array in arrays.items() if name not in large}

    def answer(self, *inputs: Any) -> dict[str, Any]:
        """All outputs, by their place."""
        values: dict[str, Any] = {**self._constants, **dict(zip(self._inputs, inputs, strict=True))}
        values |= {name: weight.read_value() for name, weight in self._weights.items()}
        for node in self._nodes:
            given = [values[name] if name else None for name in node.input]
            attributes = {each.name: _attribute(each) for each in node.attribute}
            found = OPERATORS[node.op_type](Node(node.op_type, attributes, given, len(node.output)))
            values.update(zip(node.output, found if isinstance(found, list) else [found], strict=False))
        return {_output(index): tf.identity(values[name]) for index, name in enumerate(self._outputs)}


def _attribute(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _zipped(directory: Path) -> bytes:
    """The directory's files under `savedmodel/`, in the order of their names, stored."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            archive.writestr(
                zipfile.ZipInfo(f"{_DIRECTORY}/{path.relative_to(directory)}", _FIXED_TIME), path.read_bytes()
            )
    return file.getvalue()
