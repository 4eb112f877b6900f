"""SavedModel, Keras and TFLite, where TensorFlow is installed: `make test-tensorflow` makes a place where it is."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from services.optimizer.confined import open_sandbox
from services.optimizer.settings import OptimizerSettings
from shared import events as ev
from support import network
from support.attempts import Attempt

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: make test-tensorflow")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: make test-tensorflow")
keras_network = pytest.importorskip("support.keras_network")


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "jobs").mkdir()
    return OptimizerSettings(instance="o", scratch_dir=tmp_path / "jobs")


@pytest.fixture
async def attempt(settings):
    _, probed = await open_sandbox(settings)
    return Attempt(settings, probed.tools)


@pytest.mark.parametrize("name", keras_network.FORMATS)
async def test_the_network_answers_as_in_every_other_format(attempt, tmp_path, name):
    *variants, ready = await attempt.run(keras_network.FORMATS[name](tmp_path))
    assert isinstance(ready, ev.ModelReady), ready
    (fp32,) = variants
    recognised, canonical, _ = attempt.told
    assert (recognised.format, recognised.handed_on) == (name, False)
    assert canonical.conversion.opset == 20
    assert len(canonical.conversion.shapes) == 4
    session = ort.InferenceSession(await attempt.model(fp32))
    (found,) = session.run(None, {session.get_inputs()[0].name: network.rows()})
    np.testing.assert_allclose(found, network.answers(network.rows()), rtol=1e-5, atol=1e-5)
    assert fp32.batch_cap > 1


class Calls(tf.Module):
    """A call back into Python."""

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
    def __call__(self, x):
        return tf.py_function(lambda each: each, [x], tf.float32)


class Writes(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
    def __call__(self, x):
        tf.io.write_file("MARKER-of-a-payload", "x")
        return x


class Reads(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
    def __call__(self, x):
        return x + tf.cast(tf.strings.length(tf.io.read_file("/etc/passwd")), tf.float32)


@pytest.mark.parametrize("kind", [Calls, Writes, Reads])
async def test_a_saved_model_that_does_more_than_compute(attempt, tmp_path, kind):
    module = kind()
    tf.saved_model.save(module, str(tmp_path / "bad"), signatures=module.__call__)
    (event,) = await attempt.run(keras_network.zipped(tmp_path / "bad"))
    assert event.code == "unsafe_model", event.reason
    assert not list(tmp_path.rglob("MARKER*"))


async def test_damaged_ones(attempt, tmp_path):
    (event,) = await attempt.run(network.archive({"saved_model.pb": b"\xff" * 50}))
    assert event.code == "invalid_model"
    (event,) = await attempt.run(keras_network.lite(tmp_path)[:-200] + bytes(100))
    assert event.code in {"not_convertible", "invalid_model", "not_equivalent", "vet_crashed"}
    (event,) = await attempt.run(keras_network.keras_file(tmp_path)[:-200])
    assert event.code == "unsafe_archive"
