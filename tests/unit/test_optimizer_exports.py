"""Exports as the sandbox builds them, in this process: the same answers by each framework, or a refusal with names."""

from __future__ import annotations

import io
import warnings
import zipfile
from importlib import util

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from services.optimizer.messages import Job, Limits
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import exports
from support import uploads

TOLERANCE = 1e-4
needs_torch = pytest.mark.skipif(util.find_spec("torch") is None, reason="no torch: the extra `training` is missing")
needs_tensorflow = pytest.mark.skipif(
    util.find_spec("tensorflow") is None, reason="no TensorFlow: the extra `tensorflow` is missing (docs/export.md)"
)
FORMATS = [
    pytest.param("pt2", marks=needs_torch),
    pytest.param("torchscript", marks=needs_torch),
    pytest.param("savedmodel", marks=needs_tensorflow),
]


def exported(directory, model, file_format):
    """What the child would say, and the file that it would write."""
    (directory / "upload").write_bytes(model.SerializeToString())
    job = Job(
        kind="export",
        parent_pid=0,
        limits=Limits(address_space_bytes=1, cpu_s=1, file_bytes=1),
        threads=1,
        batch_cap=8,
        max_batch_run_s=1,
        run_timeout_s=20,
        search_budget_s=60,
        export=file_format,
        about='{"model": "m"}',
    )
    return exports.export(job), (directory / "export").read_bytes()


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shapes():
    """`y` is every row of `x`, flattened by a shape that the graph computes, and doubled."""
    nodes = [
        onnx.helper.make_node("Shape", ["x"], ["shape"]),
        onnx.helper.make_node("Slice", ["shape", "zero", "one", "zero"], ["rows"]),
        onnx.helper.make_node("Concat", ["rows", "rest"], ["flat"], axis=0),
        onnx.helper.make_node("Reshape", ["x", "flat"], ["long"]),
        onnx.helper.make_node("Mul", ["long", "two"], ["y"]),
    ]
    constants = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "rest": np.array([-1], np.int64),
        "two": np.array([2.0], np.float32),
    }
    return uploads.model(
        nodes,
        {"x": (uploads.FP32, ("batch", "length", 4))},
        {"y": (uploads.FP32, ("batch", "all"))},
        constants,
    )


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("made", [uploads.mlp, uploads.conv, shapes], ids=["mlp", "conv", "shapes"])
def test_loaded_again_it_answers_as_onnx_runtime_does(directory, file_format, made):
    model = made()
    said, content = exported(directory, model, file_format)
    assert {each.batch_size for each in said.parity} == {1, 2, 8}
    assert all(each.max_abs_error <= each.tolerance <= TOLERANCE for each in said.parity)
    name, rank = model.graph.input[0].name, len(model.graph.input[0].type.tensor_type.shape.dim)
    sizes = [dim.dim_value or 5 for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    assert rank == len(sizes) + 1
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer = loaded(directory, content, file_format)
    for rows in (1, 5):
        given = np.random.default_rng(rows).standard_normal((rows, *sizes)).astype(np.float32)
        np.testing.assert_allclose(answer(name, given), session.run(None, {name: given})[0], rtol=1e-4, atol=1e-4)


def loaded(directory, content, file_format):
    """The file by its own framework and nothing of ours."""
    if file_format == "savedmodel":
        import tensorflow as tf  # noqa: PLC0415 - heavy

        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(directory / "again")
        module = tf.saved_model.load(str(directory / "again" / "savedmodel"))
        serving = module.signatures["serving_default"]
        return lambda name, given: serving(**{name: tf.constant(given)})["output_0"].numpy()
    import torch  # noqa: PLC0415 - heavy

    file = io.BytesIO(content)
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, which is no reason to refuse it
        module = torch.export.load(file).module() if file_format == "pt2" else torch.jit.load(file)
    return lambda _, given: module(torch.from_numpy(given))[0].detach().numpy()


@pytest.mark.parametrize("file_format", FORMATS)
def test_operators_that_are_not_covered_are_named(directory, file_format):
    with pytest.raises(Rejection, match="Acos") as refused:
        exported(directory, uploads.elementwise("Acos"), file_format)
    assert refused.value.code == "not_exportable"
    with pytest.raises(Rejection, match="Loop"):
        exported(directory, uploads.slow(2), file_format)
    assert not (directory / "export").exists()


@needs_torch
def test_text_has_no_place_in_torch(directory):
    with pytest.raises(Rejection, match="BYTES"):
        exported(directory, uploads.text(), "pt2")


@needs_torch
def test_an_export_that_answers_otherwise_is_refused(directory, monkeypatch):
    from services.optimizer.training import exporting  # noqa: PLC0415 - it loads torch

    loaded_again = exporting.loaded

    def wrong(content, file_format):
        answer = loaded_again(content, file_format)
        return lambda inputs: [each + 0.01 for each in answer(inputs)]

    monkeypatch.setattr(exporting, "loaded", wrong)
    with pytest.raises(Rejection, match="answers differ"):
        exported(directory, uploads.mlp(), "pt2")
    assert not (directory / "export").exists()
