"""TensorFlow's formats through the front door: uploaded, converted, answered, exported again and loaded by TensorFlow.

`test_formats` has the other formats. `make test-tensorflow` makes a place where TensorFlow is.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from support import network

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: make test-tensorflow")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: make test-tensorflow")
keras_network = pytest.importorskip("support.keras_network")
pytestmark = pytest.mark.stack
WITHIN_S = 240.0
"""For a conversion on a machine that is busy with other tests."""


@pytest.mark.parametrize("name", keras_network.FORMATS)
async def test_the_network_is_served_with_the_same_answers_and_exported_again(door, backbone, tmp_path, name):
    model, x = backbone.model(), network.rows()
    version = await door.serve(model, keras_network.FORMATS[name](tmp_path), WITHIN_S)
    state = (await door.http.get(f"/v2/repository/models/{model}/versions/{version}")).json()
    assert state["recognised"] == state["conversion"]["format"] == name
    (takes,) = (await door.http.get(f"/v2/models/{model}")).json()["inputs"]
    (output,) = (await door.infer(model, {takes["name"]: x})).outputs
    found = np.frombuffer(output.data, np.float32).reshape(output.shape)
    np.testing.assert_allclose(found, network.answers(x), rtol=1e-4, atol=1e-5)
    content = await door.export(model, version, "savedmodel")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "again")
    serving = tf.saved_model.load(str(tmp_path / "again" / "savedmodel")).signatures["serving_default"]
    (argument,) = serving.structured_input_signature[1]
    again = serving(**{argument: tf.constant(x)})["output_0"].numpy()
    np.testing.assert_allclose(again, network.answers(x), rtol=1e-4, atol=1e-4)
