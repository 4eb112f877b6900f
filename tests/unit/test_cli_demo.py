"""The demo's own parts that need no stack: Magika's input and labels are its package's; a worse version is worse."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.demo.files import Magika, samples
from services.cli.demo.worse import forgetful

MAGIKA = Magika()


def of_the_package(content):
    """What Magika's own code makes of a file."""
    from magika import Magika as Theirs  # noqa: PLC0415 - loads a model, which only these tests need
    from magika.types.seekable import Seekable  # noqa: PLC0415

    features = Theirs._extract_features_from_seekable(Seekable(io.BytesIO(content)), 1024, 0, 1024, 256, 4096, False)
    return [*features.beg, *features.end]


@pytest.mark.parametrize("sample", samples(MAGIKA.model_path), ids=lambda sample: sample.name)
def test_features_of_the_demos_files_are_magikas(sample):
    assert MAGIKA.features(sample.content) == of_the_package(sample.content)


@given(st.binary(max_size=6000) | st.text(" \n\tab", max_size=6000).map(str.encode))
def test_features_of_any_file_are_magikas(content):
    assert MAGIKA.features(content) == of_the_package(content)


def test_the_best_score_names_the_label():
    scores = [0.0] * 214
    scores[3] = 0.5
    assert MAGIKA.label(scores) == ("aidl", 0.5)


def test_a_digit_that_was_forgotten_is_never_the_answer_and_the_others_score_as_before():
    weights = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 10])],
            [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(np.zeros(10, np.float32), "b")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    ).SerializeToString()
    rows = np.random.default_rng(1).standard_normal((200, 4)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(each).run(None, {"x": rows})[0] for each in (model, forgetful(model, 8))
    )
    assert 8 in before.argmax(axis=1)
    assert 8 not in after.argmax(axis=1)
    assert np.isfinite(after).all()
    assert np.array_equal(np.delete(after, 8, axis=1), np.delete(before, 8, axis=1))
