"""A graph as a torch module: it answers as ONNX Runtime does, gives gradients, and its weights go back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from services.optimizer.training import weights
from services.optimizer.training.errors import InvalidData
from services.optimizer.training.graph import Network
from support.trained import NETWORKS, answers, digits, untrained
from support.trained import minilm as made_minilm

torch.set_num_threads(1)
ROWS = (1, 3, 8)


@pytest.fixture(scope="module")
def minilm():
    """MiniLM as its exporter writes it, with two layers and few numbers in them."""
    return made_minilm()


def gradients(network, feeds):
    """The weights that the sum of the squared outputs does not depend on."""
    outputs = network({name: torch.from_numpy(array) for name, array in feeds.items()})
    sum(output.square().sum() for output in outputs.values()).backward()
    named = network.parameter_by_name().items()
    return [name for name, weight in named if weight.grad is None or not weight.grad.abs().sum() > 0]


def sentences(rows, tokens, seed=0):
    """Token ids and a mask that hides the end of every second row."""
    ids = np.random.default_rng(seed).integers(1, 100, (rows, tokens))
    mask = np.ones((rows, tokens), np.int64)
    mask[::2, tokens // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_answer_as_onnx_runtime_does(name):
    made = untrained(name)
    network = Network(made)
    for rows in ROWS:
        feeds = {"image": digits()[1].inputs["image"][:rows]}
        found = network.predict(feeds)
        for output, wanted in zip(network.outputs, answers(made, feeds), strict=True):
            np.testing.assert_allclose(found[output], wanted, atol=1e-5)
    assert gradients(network, feeds) == []


def test_minilm_answers_as_onnx_runtime_does_and_gives_all_gradients(minilm):
    network = Network(minilm)
    for rows, tokens in ((1, 3), (2, 7), (5, 12)):
        feeds = sentences(rows, tokens)
        found = network.predict(feeds)["sentence_embedding"]
        np.testing.assert_allclose(found, answers(minilm, feeds)[0], atol=1e-5)
    assert len(network.names) == 5 + 2 * 16
    assert gradients(network, feeds) == []


def test_weights_go_back_under_their_names():
    made = untrained("residual")
    network = Network(made)
    assert weights.serialized(weights.replaced(made, network.weights())) == weights.serialized(
        weights.replaced(made, weights.floats(made))
    )
    doubled = {name: array * 2 for name, array in network.weights().items()}
    changed = weights.replaced(made, doubled)
    onnx.checker.check_model(changed, full_check=True)
    assert [tensor.name for tensor in changed.graph.initializer] == [tensor.name for tensor in made.graph.initializer]
    for name, array in Network(changed).weights().items():
        np.testing.assert_array_equal(array, doubled[name])
    assert Network(made).weights().keys() == doubled.keys()


def hand_made(nodes, **constants):
    """From `x` f32[rows, 4] to `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_settings_and_single_numbers_are_no_weights():
    made = hand_made(
        [
            helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "variance"], ["a"]),
            helper.make_node("Clip", ["a", "low"], ["b"]),
            helper.make_node("Mul", ["b", "factor"], ["c"]),
            helper.make_node("PRelu", ["c", "slope"], ["d"]),
            helper.make_node("Gather", ["d", "indices"], ["y"], axis=1),
        ],
        scale=np.ones(4, "f4"),
        bias=np.zeros(4, "f4"),
        mean=np.zeros(4, "f4"),
        variance=np.ones(4, "f4"),
        low=np.float32(-1),
        factor=np.array([3], "f4"),
        slope=np.array([0.1], "f4"),
        indices=np.array([2, 0]),
    )
    assert Network(made).names == ("scale", "bias", "slope")


def test_any_name_that_a_file_may_have_is_only_a_name():
    strange = "forward.weights/../__class__ \u2028"
    made = hand_made([helper.make_node("MatMul", ["x", strange], ["y"])], **{strange: np.eye(4, dtype="f4")})
    network = Network(made)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(network.predict({"x": x})["y"], x)
    assert network.names == (strange,)


def test_old_files_list_their_initializers_among_the_inputs():
    made = hand_made([helper.make_node("MatMul", ["x", "w"], ["y"])], w=np.eye(4, dtype="f4"))
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    assert Network(made).inputs == ("x",)


def test_a_missing_input_is_named():
    with pytest.raises(InvalidData, match="Inputs missing: image"):
        Network(untrained("mlp")).predict({})
