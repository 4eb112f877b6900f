"""ONNX operators in TensorFlow's, as a table from their names; what is not in it is refused.

Those of perceptrons, convolutional networks and transformer encoders, from opset 13 on. Windows are ONNX's [rows,
channels, spatial…], and TensorFlow's CPU kernels want the channels last: they are moved there and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tensorflow as tf
from onnx import helper

from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Node:
    """A node and what it is given; None for what is left out."""

    operator: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Any]
    outputs: int

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def optional(self, index: int) -> Any:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def known(self, index: int) -> list[int] | None:
        """Whole numbers that the file holds as a constant."""
        found = self.optional(index)
        if found is None:
            return None
        value = found if isinstance(found, np.ndarray) else tf.get_static_value(found)
        if value is None:
            raise self.refused("with computed axes")
        return [int(each) for each in np.asarray(value).reshape(-1)]

    def refused(self, how: str) -> Rejection:
        """A variant that is not covered."""
        return Rejection("not_exportable", f"{self.operator} {how} is not covered")


def _plain(function: Callable[..., Any]) -> Callable[[Node], Any]:
    return lambda node: function(*(tf.convert_to_tensor(each) for each in node.inputs))


def _cast(node: Node) -> Any:
    return tf.cast(node.inputs[0], tf.dtypes.as_dtype(helper.tensor_dtype_to_np_dtype(node.attributes["to"])))


def _clip(node: Node) -> Any:
    found, low, high = node.inputs[0], node.optional(1), node.optional(2)
    found = found if low is None else tf.maximum(found, tf.cast(low, found.dtype))
    return found if high is None else tf.minimum(found, tf.cast(high, found.dtype))


def _constant(node: Node) -> Any:
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for each in (name, f"{name}s"):
            if each in node.attributes:
                return np.asarray(node.attributes[each], dtype)
    if "value" not in node.attributes:
        raise node.refused("of that kind")
    return node.attributes["value"]


def _divide(node: Node) -> Any:
    left, right = (tf.convert_to_tensor(each) for each in node.inputs)
    return tf.math.divide(left, right) if left.dtype.is_floating else tf.truncatediv(left, right)


def _expand(node: Node) -> Any:
    shape = tf.broadcast_dynamic_shape(tf.shape(node.inputs[0], tf.int64), tf.cast(node.inputs[1], tf.int64))
    return tf.broadcast_to(node.inputs[0], shape)


def _flatten(node: Node) -> Any:
    shape, axis = tf.shape(node.inputs[0]), node.get("axis", 1)
    return tf.reshape(node.inputs[0], tf.stack([tf.reduce_prod(shape[:axis]), tf.reduce_prod(shape[axis:])]))


def _gather(node: Node) -> Any:
    axis, data = node.get("axis", 0), tf.convert_to_tensor(node.inputs[0])
    indices = tf.cast(node.inputs[1], tf.int64)
    size = tf.shape(data, tf.int64)[axis]
    return tf.gather(data, tf.where(indices < 0, indices + size, indices), axis=axis)


def _gemm(node: Node) -> Any:
    left, right, bias = node.inputs[0], node.inputs[1], node.optional(2)
    product = tf.matmul(left, right, transpose_a=bool(node.get("transA", 0)), transpose_b=bool(node.get("transB", 0)))
    product *= tf.cast(node.get("alpha", 1.0), product.dtype)
    return product if bias is None else product + tf.cast(node.get("beta", 1.0), product.dtype) * bias


def _batch_normalization(node: Node) -> Any:
    found, *rest = node.inputs
    shape = [1, -1] + [1] * (len(found.shape) - 2)
    scale, bias, mean, variance = (tf.reshape(each, shape) for each in rest[:4])
    return (found - mean) * tf.math.rsqrt(variance + node.get("epsilon", 1e-5)) * scale + bias


def _layer_normalization(node: Node) -> Any:
    found, scale, bias = node.inputs[0], node.inputs[1], node.optional(2)
    first = node.get("axis", -1) % len(found.shape)
    axes = list(range(first, len(found.shape)))
    mean, variance = tf.nn.moments(found, axes, keepdims=True)
    normal = (found - mean) * tf.math.rsqrt(variance + node.get("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


def _reduced(function: Callable[..., Any]) -> Callable[[Node], Any]:
    def compute(node: Node) -> Any:
        axes = node.known(1) or (list(node.attributes["axes"]) if "axes" in node.attributes else None)
        if not axes and node.get("noop_with_empty_axes", 0):
            raise node.refused("without axes")
        return function(node.inputs[0], axis=axes or None, keepdims=bool(node.get("keepdims", 1)))

    return compute


def _largest(node: Node) -> Any:
    if node.get("select_last_index", 0):
        raise node.refused("of the last index")
    axis = node.get("axis", 0)
    found = tf.argmax(node.inputs[0], axis=axis, output_type=tf.int64)
    return tf.expand_dims(found, axis) if node.get("keepdims", 1) else found


def _reshape(node: Node) -> Any:
    found, shape = node.inputs[0], tf.cast(node.inputs[1], tf.int64)
    if not node.get("allowzero", 0):
        have = tf.shape(found, tf.int64)
        length = tf.shape(shape)[0]
        kept = tf.concat([have, tf.ones([tf.maximum(0, length - tf.shape(have)[0])], tf.int64)], 0)[:length]
        shape = tf.where(shape == 0, kept, shape)
    return tf.reshape(found, shape)


def _shape(node: Node) -> Any:
    shape = tf.shape(node.inputs[0], tf.int64)
    return shape[node.get("start", 0) : node.get("end", None)]


def _slice(node: Node) -> Any:
    found, starts, ends = node.inputs[0], node.inputs[1], node.inputs[2]
    count = int(np.shape(starts)[0]) if isinstance(starts, np.ndarray) else int(starts.shape[0])
    axes, steps = node.known(3) or list(range(count)), node.known(4) or [1] * count
    far = np.iinfo(np.int32).max
    places: list[Any] = [slice(None)] * len(found.shape)
    for index, axis in enumerate(axes):
        if steps[index] < 1:
            raise node.refused("backwards")
        first, last = (tf.clip_by_value(tf.cast(each[index], tf.int64), -far, far) for each in (starts, ends))
        places[axis] = slice(tf.cast(first, tf.int32), tf.cast(last, tf.int32), steps[index])
    return found[tuple(places)]


def _split(node: Node) -> Any:
    axis, sizes = node.get("axis", 0), node.known(1)
    return tf.split(node.inputs[0], sizes if sizes is not None else node.get("num_outputs", node.outputs), axis=axis)


def _softmax(node: Node) -> Any:
    return tf.nn.softmax(node.inputs[0], axis=node.get("axis", -1))


def _squeeze(node: Node) -> Any:
    return tf.squeeze(node.inputs[0], axis=node.known(1))


def _transpose(node: Node) -> Any:
    return tf.transpose(node.inputs[0], node.get("perm", None))


def _unsqueeze(node: Node) -> Any:
    found, axes = tf.convert_to_tensor(node.inputs[0]), node.known(1) or []
    rank = len(found.shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        found = tf.expand_dims(found, axis)
    return found


# --------------------------------------------------------------------------- windows


def _channels_last(found: Any) -> Any:
    rank = len(found.shape)
    return tf.transpose(found, [0, *range(2, rank), 1])


def _channels_first(found: Any) -> Any:
    rank = len(found.shape)
    return tf.transpose(found, [0, rank - 1, *range(1, rank - 1)])


def _padded(node: Node, found: Any, spatial: int, value: float = 0.0) -> Any:
    """With the pads around it that the node asks for, channels last."""
    mode = node.get("auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID"):
        raise node.refused(f"with auto_pad {mode}")
    pads = list(node.get("pads", [0] * 2 * spatial)) if mode == "NOTSET" else [0] * 2 * spatial
    if not any(pads):
        return found
    around = [[0, 0], *([pads[axis], pads[axis + spatial]] for axis in range(spatial)), [0, 0]]
    return tf.pad(found, around, constant_values=tf.cast(value, found.dtype))


def _conv(node: Node) -> Any:
    found, weight, bias = node.inputs[0], tf.convert_to_tensor(node.inputs[1]), node.optional(2)
    spatial, group = len(weight.shape) - 2, node.get("group", 1)
    ones = [1] * spatial
    strides, dilations = list(node.get("strides", ones)), list(node.get("dilations", ones))
    last = _padded(node, _channels_last(found), spatial)
    kernel = tf.transpose(weight, [*range(2, spatial + 2), 1, 0])
    if group == 1:
        made = tf.nn.convolution(last, kernel, strides=strides, padding="VALID", dilations=dilations)
    elif spatial == 2 and weight.shape[1] == 1 and weight.shape[0] == group:  # noqa: PLR2004 - pictures
        each = tf.transpose(kernel, [0, 1, 3, 2])
        made = tf.nn.depthwise_conv2d(last, each, [1, *strides, 1], "VALID", dilations=dilations)
    else:
        raise node.refused(f"in {group} groups")
    return _channels_first(made if bias is None else made + bias)


def _pool(kind: str) -> Callable[[Node], Any]:
    def compute(node: Node) -> Any:
        kernel = list(node.attributes["kernel_shape"])
        spatial, ones = len(kernel), [1] * len(kernel)
        if node.get("ceil_mode", 0) or list(node.get("dilations", ones)) != ones:
            raise node.refused("with ceil_mode or dilations")
        if kind == "AVG" and any(node.get("pads", [])) and not node.get("count_include_pad", 0):
            raise node.refused("with pads that do not count")
        last = _padded(node, _channels_last(node.inputs[0]), spatial, -np.inf if kind == "MAX" else 0.0)
        return _channels_first(tf.nn.pool(last, kernel, kind, list(node.get("strides", ones)), "VALID"))

    return compute


def _whole(function: Callable[..., Any]) -> Callable[[Node], Any]:
    return lambda node: function(node.inputs[0], axis=list(range(2, len(node.inputs[0].shape))), keepdims=True)


OPERATORS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "Abs": _plain(tf.abs),
    "Add": _plain(tf.add),
    "And": _plain(tf.logical_and),
    "ArgMax": _largest,
    "AveragePool": _pool("AVG"),
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda node: tf.concat(list(node.inputs), node.attributes["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "Div": _divide,
    "Dropout": lambda node: node.inputs[0],
    "Equal": _plain(tf.equal),
    "Erf": _plain(tf.math.erf),
    "Exp": _plain(tf.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda node: tf.nn.gelu(node.inputs[0], approximate=node.get("approximate", "none") == "tanh"),
    "Gemm": _gemm,
    "GlobalAveragePool": _whole(tf.reduce_mean),
    "GlobalMaxPool": _whole(tf.reduce_max),
    "Greater": _plain(tf.greater),
    "HardSigmoid": lambda node: tf.clip_by_value(
        node.inputs[0] * node.get("alpha", 0.2) + node.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": lambda node: node.inputs[0] * tf.clip_by_value(node.inputs[0] / 6.0 + 0.5, 0.0, 1.0),
    "Identity": lambda node: node.inputs[0],
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": lambda node: tf.nn.leaky_relu(node.inputs[0], node.get("alpha", 0.01)),
    "Less": _plain(tf.less),
    "Log": _plain(tf.math.log),
    "LogSoftmax": lambda node: tf.nn.log_softmax(node.inputs[0], axis=node.get("axis", -1)),
    "MatMul": _plain(tf.matmul),
    "MaxPool": _pool("MAX"),
    "Mul": _plain(tf.multiply),
    "Neg": _plain(tf.negative),
    "Not": _plain(tf.logical_not),
    "Pow": lambda node: tf.pow(node.inputs[0], tf.cast(node.inputs[1], node.inputs[0].dtype)),
    "Reciprocal": _plain(tf.math.reciprocal),
    "ReduceL2": _reduced(lambda found, axis, keepdims: tf.sqrt(tf.reduce_sum(found * found, axis, keepdims))),
    "ReduceMax": _reduced(tf.reduce_max),
    "ReduceMean": _reduced(tf.reduce_mean),
    "ReduceMin": _reduced(tf.reduce_min),
    "ReduceSum": _reduced(tf.reduce_sum),
    "Relu": _plain(tf.nn.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _plain(tf.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _plain(tf.nn.softplus),
    "Split": _split,
    "Sqrt": _plain(tf.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(tf.subtract),
    "Tanh": _plain(tf.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(tf.where),
}
