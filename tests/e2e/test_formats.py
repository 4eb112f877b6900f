"""Formats through the front door: uploaded, converted, answered; hostile ones rejected, with all services alive."""

from __future__ import annotations

import asyncio
import contextlib
import io

import joblib
import numpy as np
import onnxruntime as ort
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from services.cli.__main__ import main
from support import bundles, hostile, network, uploads
from support.waiting import eventually

pytestmark = pytest.mark.stack
WITHIN_S = 240.0
"""For a conversion on a machine that is busy with other tests."""


async def settled(door, model, version):
    async def look():
        state = (await door.http.get(f"/v2/repository/models/{model}/versions/{version}")).json()
        return state if state["state"] in ("ready", "rejected") else None

    return await eventually(look, within_s=WITHIN_S, what=f"{model} settled")


AGAIN = {"onnx": "onnx", "onnx-bundle": "bundle", "safetensors": "pt2", "pt2": "pt2", "torchscript": "torchscript"}
"""What each upload is exported as; safetensors have no program of their own, and become one of the same framework."""


async def test_one_network_in_every_format_is_served_with_the_same_answers_and_exported_again(door, backbone):
    names = {name: backbone.model() for name in bundles.FORMATS}
    versions = {name: await door.upload(names[name], make()) for name, make in bundles.FORMATS.items()}
    x = bundles.rows()
    for name, model in names.items():
        state = await settled(door, model, versions[name])
        assert state["state"] == "ready", (name, state["reason"])
        await door.held(model, versions[name])
        (takes,) = (await door.http.get(f"/v2/models/{model}")).json()["inputs"]
        answer = await door.infer(model, {takes["name"]: x})
        (found,) = answer.outputs
        values = np.frombuffer(found.data, np.float32).reshape(found.shape)
        np.testing.assert_allclose(values, bundles.answers(x), rtol=1e-4, atol=1e-5)
        if name not in ("onnx", "onnx-bundle"):
            assert state["recognised"] == state["conversion"]["format"] == name
            assert state["conversion"]["max_abs_error"] < 1e-4
            assert [step["name"] for step in state["steps"]][:2] == ["canonical", "fp32"]
        content = await door.export(model, versions[name], AGAIN[name])
        again = loaded(content, AGAIN[name])
        np.testing.assert_allclose(again(x), bundles.answers(x), rtol=1e-4, atol=1e-4)


def loaded(content, file_format):
    """An export, by its own framework and nothing of ours."""
    if file_format in ("onnx", "bundle"):
        if file_format == "bundle":
            content = network.members(content)["model.onnx"]
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]
    file = io.BytesIO(content)
    with bundles.quiet():
        module = torch.export.load(file).module() if file_format == "pt2" else torch.jit.load(file)
    return lambda x: module(torch.from_numpy(x))[0].detach().numpy()


@pytest.mark.parametrize("name", bundles.NOT_ONNX)
async def test_what_does_not_become_onnx_is_served_by_torch_with_the_answers_of_its_module(door, backbone, name):
    model, x = backbone.model(), bundles.rows()
    version = await door.serve(model, bundles.NOT_ONNX[name](), WITHIN_S)
    state = await settled(door, model, version)
    assert state["conversion"]["engine"] == "torch"
    (variant,) = state["variants"]
    assert (variant["engine"], variant["batch_cap"] > 1) == ("torch", True)
    assert "bessel_j0" in state["reason"]
    (takes,) = (await door.http.get(f"/v2/models/{model}")).json()["inputs"]
    assert (takes["datatype"], takes["shape"]) == ("FP32", [-1, 8])
    for rows in (x, x[:1]):
        answer = await door.infer(model, {takes["name"]: rows})
        assert answer.status == 200, answer
        (found,) = answer.outputs
        values = np.frombuffer(found.data, np.float32).reshape(found.shape)
        np.testing.assert_allclose(values, bundles.bessel(rows), rtol=1e-5, atol=1e-6)
    again = await door.export(model, version, name)
    if name == "pt2":
        with bundles.quiet():
            module = torch.export.load(io.BytesIO(again)).module()
        found = module(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(found, bundles.bessel(x), rtol=1e-5, atol=1e-6)
    assert (await settled(door, model, await door.upload(model, again)))["conversion"]["engine"] == "torch"
    wrong = {"pt2": "torchscript", "torchscript": "pt2"}[name]
    refused = await door.http.post(f"/v2/repository/models/{model}/versions/{version}/export?format={wrong}")
    assert (refused.status_code, f"only {name} and bundle" in refused.json()["error"]) == (400, True)
    refused = await door.http.post(f"/v2/repository/models/{model}/update", json={})
    assert refused.status_code == 400, refused.text
    assert "only ONNX is trained" in refused.json()["error"]


async def test_a_pipeline_of_scikit_learn_converted_at_home(door, backbone, tmp_path):
    rows, labels = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows.astype(np.float32), labels)
    path, name = tmp_path / "iris.joblib", backbone.model()
    joblib.dump(model, path)
    refused = await settled(door, name, await door.upload(name, path.read_bytes()))
    assert refused["code"] == "unsupported_format"
    assert "aiaas models convert" in refused["reason"]
    with contextlib.suppress(SystemExit):
        await asyncio.to_thread(main, ["models", "convert", str(path), "--trust"])
    await door.serve(name, path.with_suffix(".onnx").read_bytes())
    answer = await door.infer(name, {"input": rows[:50].astype(np.float32)})
    label = next(output for output in answer.outputs if output.datatype == "INT64")
    assert (np.frombuffer(label.data, np.int64) == model.predict(rows[:50])).all()


SAMPLE = (
    "pickle, protocol 4",
    "whole model, torch.save",
    "zip: ..",
    "zip: symlink",
    "tar: headers about headers",
    "onnx bundle: data in /etc/passwd",
    "onnx: function that calls itself",
    "safetensors: shape that overflows",
    "config: architecture by import path",
    "pt2: expression that imports",
    "pt2: pickled weights",
    "torchscript: writes a file",
    "keras: a Lambda layer",
)


async def test_hostile_uploads_are_rejected_with_a_reason_and_nothing_falls(door, backbone):
    names = {name: backbone.model() for name in SAMPLE}
    versions = {name: await door.upload(names[name], hostile.content(name)) for name in SAMPLE}
    good = backbone.model()
    await door.upload(good, uploads.mlp().SerializeToString())
    for name, model in names.items():
        if name.startswith("keras"):
            waiting = await waits(door, model, versions[name])
            assert "tensorflow" in waiting["waits_for"]
            assert waiting["state"] == "uploaded"
            continue
        state = await settled(door, model, versions[name])
        expected = hostile.CORPUS[name][1]
        assert state["state"] == "rejected", name
        assert state["code"] in ([expected] if isinstance(expected, str) else expected), (name, state["reason"])
        assert len(state["reason"]) > 20
    assert (await settled(door, good, 1))["state"] == "ready"
    assert (await door.http.get("/v2/health/ready")).status_code == 200


async def waits(door, model, version):
    """The version once it says what it waits for."""

    async def look():
        state = (await door.http.get(f"/v2/repository/models/{model}/versions/{version}")).json()
        return state if state["waits_for"] else None

    return await eventually(look, within_s=WITHIN_S, what=f"{model} waiting")
