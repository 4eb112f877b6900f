"""Channels, neurons and heads go with all that is coupled to them, and what is left runs in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from services.optimizer.recipes.build import build
from services.optimizer.recipes.configs import StaticQdq
from services.optimizer.training.config import AdamW, Training
from services.optimizer.training.data import Rows
from services.optimizer.training.distil import heal
from services.optimizer.training.errors import InvalidConfig, InvalidData, NotPrunable
from services.optimizer.training.prune import Pruning, prune
from services.optimizer.training.sparsify import Sparsity, sparsify
from services.optimizer.training.weights import floats, replaced, serialized
from support.trained import NETWORKS, accuracy, answers, digits, minilm, trained, untrained

torch.set_num_threads(1)
HALF = Pruning(ratio=0.5)
ROWS = (1, 2, 7)


def sizes(pruned):
    return sorted((each.groups, each.removed) for each in pruned.families)


def runs(model, name="image", shape=(1, 8, 8)):
    for rows in ROWS:
        x = np.random.default_rng(rows).standard_normal((rows, *shape)).astype(np.float32)
        (found,) = answers(model, {name: x})
        assert found.shape[0] == rows
        assert np.isfinite(found).all()


EXPECTED = {
    "mlp": [(48, 24)],
    "cnn": [(16, 8), (32, 16), (64, 32)],
    "residual": [(16, 8), (24, 12)],  # the sum and the depthwise convolution go together
    "concat": [(8, 4), (12, 6), (12, 6)],  # both branches, and the halves that are multiplied
    "encoder": [(4, 2), (4, 2), (32, 16), (64, 32), (64, 32)],  # heads, the residual stream, neurons
    "torch": [(32, 16), (64, 32), (64, 32)],  # its heads are folded into the rows: they stay
}


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_family_goes(name):
    pruned = prune(untrained(name), HALF)
    assert sizes(pruned) == EXPECTED[name]
    assert pruned.parameters_after < 0.55 * pruned.parameters_before
    onnx.checker.check_model(pruned.model, full_check=True)
    runs(pruned.model)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_model_gives_the_same_bytes(name):
    assert serialized(prune(untrained(name), HALF).model) == serialized(prune(untrained(name), HALF).model)


def test_minilm_loses_heads_and_neurons_and_keeps_its_output():
    pruned = prune(minilm(), HALF)
    assert sizes(pruned) == [(4, 2), (4, 2), (48, 24), (48, 24)]
    for rows, tokens in ((1, 4), (3, 9), (5, 30)):
        feeds = {"input_ids": np.ones((rows, tokens), np.int64), "attention_mask": np.ones((rows, tokens), np.int64)}
        assert answers(pruned.model, feeds)[0].shape == (rows, 32)


def silenced(model, *names):
    """The model with every second row or kernel of these weights at 0: they add nothing."""
    arrays = floats(model)
    for name in names:
        arrays[name][::2] = 0
    return replaced(model, arrays)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mlp", ("1.weight", "1.bias")),
        ("cnn", ("0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias")),
        ("concat", ("left.weight", "left.bias", "right.weight", "right.bias")),
        ("residual", ("inner.weight", "inner.bias")),
    ],
)
def test_what_adds_nothing_goes_first_and_no_answer_changes(name, weights):
    quiet = silenced(untrained(name), *weights)
    others = tuple(each for each in floats(quiet) if each not in weights)
    pruned = prune(quiet, Pruning(ratio=0.5, keep=() if name in ("mlp", "cnn") else _kept(weights, others)))
    images = digits()[1].inputs["image"][:32]
    np.testing.assert_allclose(
        answers(pruned.model, {"image": images})[0], answers(quiet, {"image": images})[0], atol=1e-5
    )


def _kept(silent, others):
    """The families without a silent weight, named by their biases."""
    return tuple(each for each in others if each.endswith("bias") and each not in silent)


def test_digits_pruned_by_half_healed_and_quantized_are_within_a_point():
    original, rows = trained("cnn"), digits()[0]
    pruned = prune(original, HALF)
    config = Training(optimizer=AdamW(learning_rate=3e-3), epochs=8, patience=None)
    healed = heal(pruned.model, original, rows.inputs, config)
    assert pruned.parameters_after * 3 < pruned.parameters_before
    assert accuracy(healed.model) >= accuracy(original) - 0.01
    assert serialized(healed.model) != serialized(pruned.model)
    calibration = [{"image": image[None]} for image in rows.inputs["image"][:64]]
    assert accuracy(build(StaticQdq(), healed.model, calibration)) >= accuracy(original) - 0.01


def test_importance_by_the_loss_looks_at_rows():
    original, rows = trained("cnn"), digits()[0].take(np.arange(100))
    by_loss = Pruning(ratio=0.5, importance="taylor")
    assert accuracy(prune(original, by_loss, rows).model) > 0.5
    with pytest.raises(InvalidData, match="taylor"):
        prune(original, by_loss)


def test_families_can_be_kept_and_rounded():
    model = untrained("cnn")
    kept = prune(model, Pruning(ratio=0.5, keep=("6.*",)))
    assert sizes(kept) == [(16, 8)]  # the second convolution feeds the dense layer: it is one family with it
    rounded = prune(model, Pruning(ratio=0.3, multiple_of=8))
    assert sizes(rounded) == [(16, 0), (32, 8), (64, 16)]
    least = prune(model, Pruning(ratio=0.9, at_least=10))
    assert sizes(least) == [(16, 6), (32, 22), (64, 54)]


def test_a_ratio_that_takes_nothing_is_refused():
    with pytest.raises(NotPrunable, match=r"No channel, neuron or head can go at a ratio of 0\.01"):
        prune(untrained("cnn"), Pruning(ratio=0.01))
    with pytest.raises(InvalidConfig, match=r"^ratio: "):
        prune(untrained("cnn"), Pruning(ratio=1.5))


FLOAT = TensorProto.FLOAT


def hand_made(nodes, shape, **constants):
    generator = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(
            each if isinstance(each, np.ndarray) else generator.standard_normal(each).astype("f4"), name
        )
        for name, each in constants.items()
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["rows", *shape])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dense(inputs=12):
    return helper.make_node("MatMul", ["h", "out"], ["y"]), (inputs, 3)


def through(*nodes, hidden=12, **constants):
    """`x` f32[rows, 5], a dense layer to `g`, the nodes, and a dense layer from `h`."""
    last, shape = dense(hidden)
    return hand_made(
        [helper.make_node("MatMul", ["x", "in"], ["g"]), *nodes, last],
        (5,),
        **{"in": (5, 12), **constants, "out": shape},
    )  # fmt: skip - one call


def node(operator, inputs, outputs=("h",), **attributes):
    return helper.make_node(operator, list(inputs), list(outputs), **attributes)


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (through(node("Relu", "g")), [(12, 6)]),
        (through(node("Slice", ["g", "s", "e", "a"]), hidden=5, s=ints(2), e=ints(7), a=ints(1)), [(5, 2), (7, 3)]),
        (through(node("Slice", ["g", "s", "e", "a"]), hidden=5, s=ints(-10), e=ints(-5), a=ints(-1)), [(5, 2), (7, 3)]),
        (
            through(node("Split", ["g", "s"], ["a", "b"], axis=1), node("Mul", "ab"), hidden=6, s=ints(6, 6)),
            [(6, 3)],
        ),
        (through(node("Split", ["g"], ["a", "b"], axis=1), node("Mul", "ab"), hidden=6), [(6, 3)]),
        (
            through(node("Reshape", ["g", "s"], "a"), node("Reshape", ["a", "t"]), s=ints(0, 3, 4), t=ints(0, 12)),
            [(3, 1)],
        ),
        (through(node("Reshape", ["g", "s"], "a"), node("Flatten", "a"), s=ints(-1, 3, 4)), [(3, 1)]),
        (
            through(
                node("Reshape", ["g", "s"], "a"),
                node("Transpose", "a", "b", perm=[0, 2, 1]),
                node("Reshape", ["b", "t"]),
                s=ints(0, 3, 4),
                t=ints(0, -1),
            ),
            [(3, 1)],
        ),
        (through(node("Gather", ["g", "s"], axis=1), hidden=4, s=ints(3, 1, 0, 7)), [(4, 2)]),  # rows of the indices
        (through(node("Slice", ["g", "s", "e", "a", "t"]), s=ints(-1), e=ints(-99), a=ints(1), t=ints(-1)), None),
        (through(node("Pad", ["g", "s"]), hidden=13, s=ints(0, 0, 0, 1)), None),
        (through(node("Trilu", "g")), None),
        (through(node("LayerNormalization", ["g", "n", "m"]), n=(12,), m=(12,)), [(12, 6)]),
        (through(node("ReduceMean", "g", "a", axes=[1]), node("Sub", "ga")), [(12, 6)]),
        (through(node("Expand", ["g", "s"]), s=ints(1, 12)), [(12, 6)]),
    ],
)  # fmt: skip - a graph a line
def test_operators_on_the_way(made, expected):
    if expected is None:
        with pytest.raises(NotPrunable, match="No channel"):
            prune(made, HALF)
        return
    pruned = prune(made, HALF)
    assert sizes(pruned) == expected
    runs(pruned.model, "x", (5,))


def convolutions(*nodes, **constants):
    """`x` f32[rows, 3, 8, 8] through a convolution to eight channels, the nodes from `g` to `h`, and one to two."""
    first = helper.make_node("Conv", ["x", "in"], ["g"], pads=[1, 1, 1, 1])
    last = helper.make_node("Conv", ["h", "out"], ["y"])
    return hand_made([first, *nodes, last], (3, 8, 8), **{"in": (8, 3, 3, 3), **constants, "out": (2, 8, 1, 1)})


NORM = {"s": (8,), "b": (8,), "m": (8,), "v": np.ones(8, "f4")}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (convolutions(node("BatchNormalization", "gsbmv"), **NORM), [(8, 4)]),
        (convolutions(node("InstanceNormalization", "gsb"), s=(8,), b=(8,)), [(8, 4)]),
        (convolutions(node("Conv", "gw", group=8), w=(8, 1, 1, 1)), [(8, 4)]),
        (convolutions(node("Conv", "gw", group=2), w=(8, 4, 1, 1)), [(2, 1)]),  # whole groups of four
        (convolutions(node("ConvTranspose", "gw", strides=[2, 2]), w=(8, 8, 2, 2)), [(8, 4), (8, 4)]),
        (convolutions(node("ConvTranspose", "gw", group=4), w=(8, 2, 1, 1)), [(4, 2)]),
        (convolutions(node("AveragePool", "g", kernel_shape=[2, 2])), [(8, 4)]),
        (convolutions(node("Resize", ["g", "", "", "s"]), s=ints(1, 8, 16, 16)), None),
        (convolutions(node("GlobalAveragePool", "g", "a"), node("Mul", "ga")), [(8, 4)]),
        (convolutions(node("PRelu", "gs"), s=(8, 1, 1)), [(8, 4)]),
    ],
)
def test_convolutions_on_the_way(made, expected):
    if expected is None:
        made.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([1, 1, 2, 2], "f4"), "s"))
        made.graph.node[1].input[2], made.graph.node[1].input[3] = "s", ""
        expected = [(8, 4)]
    pruned = prune(made, HALF)
    assert sizes(pruned) == expected
    runs(pruned.model, "x", (3, 8, 8))


def test_a_size_that_is_computed_wrongly_from_what_is_left_is_refused():
    """The width of a head is a third of the layer's: of two heads that are left it would be another."""
    made = through(
        node("Shape", "g", "a", start=1),
        node("Div", "ad", "b"),
        node("Concat", "zdb", "c", axis=0),
        node("Reshape", "gc", "e"),
        node("Reshape", "et"),
        d=ints(3),
        z=ints(0),
        t=ints(0, -1),
    )  # fmt: skip - a graph a line
    with pytest.raises(NotPrunable, match="What is left does not run"):
        prune(made, HALF)


def test_constants_that_several_share_are_corrected_for_each_alone():
    first = [node("MatMul", ["x", "in"], "g"), node("Reshape", ["g", "s"], "a"), node("Flatten", "a")]
    second = [node("MatMul", ["x", "two"], "i"), node("Reshape", ["i", "s"], "j"), node("Flatten", "j", "k")]
    last = [node("MatMul", ["h", "out"], "l"), node("MatMul", ["k", "end"], "m"), node("Add", "lm", "y")]
    made = hand_made(
        [*first, *second, *last],
        (5,),
        **{"in": (5, 12), "two": (5, 12), "s": ints(0, 3, 4), "out": (12, 2), "end": (12, 2)},
    )  # fmt: skip - one call
    pruned = prune(made, Pruning(ratio=0.5, keep=("two",)))
    assert sizes(pruned) == [(3, 1)]
    runs(pruned.model, "x", (5,))


def test_zeros_save_nothing_but_compressed_bytes():
    model = trained("cnn")
    found = sparsify(model, Sparsity(ratio=0.9))
    assert found.zeros / found.parameters > 0.85
    assert found.size_after_bytes == found.size_before_bytes
    assert found.compressed_after_bytes < 0.5 * found.compressed_before_bytes
    config = Training(optimizer=AdamW(learning_rate=3e-3), epochs=2, keep_zeros=True)
    healed = heal(found.model, model, digits()[0].inputs, config)
    kept = sum(int((array == 0).sum()) for array in floats(healed.model).values() if array.ndim > 1)
    assert kept >= found.zeros
    assert accuracy(healed.model) > accuracy(found.model)


def test_rows_hold_numbers():
    with pytest.raises(InvalidData, match="finite"):
        Rows({"x": np.array([np.nan])}, np.array([0]))
