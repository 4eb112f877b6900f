"""TensorFlow's formats, through tf2onnx: SavedModel, Keras (.keras) and TFLite.

A SavedModel is a graph of operators that may read and write files or call back into Python: before TensorFlow loads
it, every operator of every function must be one that tf2onnx converts, or one of those that hold and restore weights.
Of its files only the graph and the weights are written out, below the working directory, for that is how TensorFlow
reads them. tf2onnx has opset 18 at most: `canonical` brings it to 20.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tensorflow as tf
import tf2onnx.convert
import tf2onnx.tfonnx  # it registers what converts the operators
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs in our environment
from tensorflow.core.protobuf import saved_model_pb2
from tf2onnx.handler import tf_op

from services.optimizer.conversion.source import NotConvertible, Source, first_line
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from services.optimizer.conversion.archives import Archive
    from services.optimizer.sandbox.engine import Feeds
    from shared.tensors import Array

_OPSET: Final = 18
_WEIGHTS: Final = re.compile(r"variables/variables\.(index|data-\d{5}-of-\d{5})")
_PASSED_OVER: Final = frozenset({"fingerprint.pb", "keras_metadata.pb", "saved_model.pb"})
_SIGNATURE: Final = "serving_default"
_HOLDS_WEIGHTS: Final = frozenset(
    {
        "NoOp",
        "Placeholder",
        "PlaceholderWithDefault",
        "Const",
        "VarHandleOp",
        "ReadVariableOp",
        "AssignVariableOp",
        "VarIsInitializedOp",
        "StatefulPartitionedCall",
        "PartitionedCall",
        "SaveV2",
        "RestoreV2",
        "ShardedFilename",
        "MergeV2Checkpoints",
        "StringJoin",
        "StaticRegexFullMatch",
        "DisableCopyOnRead",
        "IdentityN",
        "Identity",
        "Select",
        "SelectV2",
        "Pack",
        "StopGradient",
    }
)  # fmt: skip - one list
"""What every SavedModel has around its computation. Where those that touch files may write, the kernel decides."""


def convert(name: str, archive: Archive | None, content: bytes) -> Source:
    """One of the three formats.

    Raises:
        Rejection: it is damaged, or does more than compute.
        NotConvertible: TensorFlow does not load it, or tf2onnx does not convert it.
    """
    if name == "tflite":
        return _tflite(content)
    if archive is None:
        raise Rejection("invalid_bundle", f"A {name} is an archive")
    return _saved_model(archive) if name == "savedmodel" else _keras(content)


def _saved_model(archive: Archive) -> Source:
    graph = archive.read("saved_model.pb")
    _check_operators(graph)
    with TemporaryDirectory(dir=".") as directory:
        for member in archive.sizes:
            if _WEIGHTS.fullmatch(member):
                _write(Path(directory) / member, archive.read(member))
            elif member not in _PASSED_OVER:
                raise NotConvertible(f"The SavedModel brings {member[:100]!r}, which is neither graph nor weights")
        _write(Path(directory) / "saved_model.pb", graph)
        with _converting():
            loaded = tf.saved_model.load(directory)
        if _SIGNATURE not in loaded.signatures:
            raise NotConvertible(f"The SavedModel has no signature {_SIGNATURE!r}")
        return _from_signature(loaded.signatures[_SIGNATURE])


def _check_operators(content: bytes) -> None:
    """Every operator of the graph and of its functions.

    Raises:
        Rejection: it does more than compute.
    """
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(content)
    except DecodeError as err:
        raise Rejection("invalid_model", f"saved_model.pb does not parse: {err}") from err
    known = _known()
    for meta in saved.meta_graphs:
        functions = {function.signature.name for function in meta.graph_def.library.function}
        nodes = [*meta.graph_def.node]
        for function in meta.graph_def.library.function:
            nodes += function.node_def
        for node in nodes:
            if node.op not in known and node.op not in functions:
                raise Rejection("unsafe_model", f"The SavedModel has the operator {node.op[:100]!r}")


def _known() -> frozenset[str]:
    """What tf2onnx converts, and what holds weights."""
    converted: set[str] = set()
    for versions in tf_op.get_opsets().values():
        for handlers in versions:
            converted.update(handlers)
    return _HOLDS_WEIGHTS | converted


def _from_signature(function: Any) -> Source:
    """A signature: inputs by name, outputs by name in the order of their names."""
    specs = dict(function.structured_input_signature[1])
    outputs = sorted(function.structured_outputs)
    with _converting():

        @tf.function(input_signature=[tf.TensorSpec(each.shape, each.dtype, name=name) for name, each in specs.items()])  # type: ignore[untyped-decorator] # TensorFlow has no types
        def call(*given: Any) -> Any:
            found = function(**dict(zip(specs, given, strict=True)))
            return [tf.identity(found[name], name=name) for name in outputs]

        return _from_function(call, list(specs), outputs, "TensorFlow SavedModel")


def _keras(content: bytes) -> Source:
    with TemporaryDirectory(dir=".") as directory, _converting():
        path = Path(directory) / "model.keras"
        _write(path, content)
        model = tf.keras.models.load_model(path, compile=False, safe_mode=True)
        names = [each.name.split(":")[0] for each in model.inputs]

        @tf.function(  # type: ignore[untyped-decorator] # TensorFlow has no types
            input_signature=[
                tf.TensorSpec(each.shape, each.dtype, name=name) for each, name in zip(model.inputs, names, strict=True)
            ]
        )
        def call(*given: Any) -> Any:
            return model(given[0] if len(given) == 1 else list(given), training=False)

        return _from_function(call, names, _numbered(len(model.outputs)), "Keras model")


def _from_function(call: Any, inputs: Sequence[str], outputs: Sequence[str], how: str) -> Source:
    model, _ = tf2onnx.convert.from_function(call, input_signature=call.input_signature, opset=_OPSET)
    _rename(model, _names(model.graph.input), inputs)
    if len(outputs) == len(model.graph.output):
        _rename(model, _names(model.graph.output), outputs)

    def run(feeds: Feeds) -> list[Array]:
        answer = call(*(tf.constant(feeds[name]) for name in inputs))
        return [np.asarray(each) for each in tf.nest.flatten(answer)]

    return Source(model, f"{how}; tensorflow {tf.__version__}, tf2onnx {tf2onnx.__version__}", run)


def _tflite(content: bytes) -> Source:
    with TemporaryDirectory(dir=".") as directory, _converting():
        path = Path(directory) / "model.tflite"
        _write(path, content)
        model, _ = tf2onnx.convert.from_tflite(str(path), opset=_OPSET)
    inputs, outputs = _names(model.graph.input), _names(model.graph.output)
    called = [name.removeprefix("serving_default_").partition(":")[0] for name in inputs]
    _rename(model, inputs, called)
    _rename(model, outputs, _numbered(len(outputs)))
    return Source(
        model,
        f"TFLite; tensorflow {tf.__version__}, tf2onnx {tf2onnx.__version__}",
        _interpreted(content, dict(zip(called, inputs, strict=True)), outputs),
    )


def _interpreted(content: bytes, inputs: Mapping[str, str], outputs: Sequence[str]) -> Callable[[Feeds], list[Array]]:
    """The original in TFLite's own interpreter, without the kernels that optimize."""

    def run(feeds: Feeds) -> list[Array]:
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=1)
        details = {each["name"]: each["index"] for each in interpreter.get_input_details()}
        for name, own in inputs.items():
            interpreter.resize_tensor_input(details[own], feeds[name].shape, strict=True)
        interpreter.allocate_tensors()
        for name, own in inputs.items():
            interpreter.set_tensor(details[own], feeds[name])
        interpreter.invoke()
        found = {each["name"]: each["index"] for each in interpreter.get_output_details()}
        return [np.asarray(interpreter.get_tensor(found[name])) for name in outputs]

    return run


def _names(values: Any) -> list[str]:
    return [value.name for value in values]


def _numbered(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _rename(model: Any, old: Sequence[str], new: Sequence[str]) -> None:
    """Give tensors of the main graph other names, as far as nothing else is called so."""
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    names = {was: called for was, called in zip(old, new, strict=True) if was == called or called not in taken}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextmanager
def _converting() -> Iterator[None]:
    """A place for TensorFlow's own code, which warns and raises as it likes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MemoryError, Rejection):
        raise
    except Exception as err:
        raise NotConvertible(f"TensorFlow does not convert it: {first_line(err)}") from err
    finally:
        logging.disable(logging.NOTSET)
