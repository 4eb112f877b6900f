"""Texts and pictures into a real worker, labels and embeddings out: batches, receipts, and what hostile ones get."""

from __future__ import annotations

import base64
import hashlib
import io
import random

import numpy as np
import orjson
import pytest
from msgspec import to_builtins
from PIL import Image
from sklearn.datasets import load_digits

from services.worker.settings import WorkerSettings
from shared import processing
from shared.events import ModelPromoted
from shared.oip import encode_request_msgpack
from shared.tensors import from_numpy, output_digest, to_numpy
from support.processing import (
    artifact,
    asking,
    bomb,
    classification,
    embedder,
    embedding,
    picture,
    template_matcher,
    tokenizer_json,
)
from support.worker_rig import rig, worker_running

pytestmark = pytest.mark.stack
MSGPACK = "application/msgpack"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
async def worker(backbone):
    settings = backbone.settings(WorkerSettings, threads=1)
    async with rig(settings) as there, worker_running(settings):
        yield there


def digit_model():
    """The mean of each of scikit-learn's digits as a linear classifier of pictures from 0 to 1."""
    digits = load_digits()
    means = np.stack([digits.data[digits.target == digit].mean(axis=0) for digit in range(10)]) / 16
    return template_matcher(means / np.linalg.norm(means, axis=1, keepdims=True)), digits


def named(result):
    return {tensor.name: to_numpy(tensor) for tensor in result.outputs}


async def test_a_picture_goes_in_and_a_label_comes_out(worker, backbone):
    name, (model, digits) = backbone.model(), digit_model()
    declared = classification(DIGITS)
    await worker.upload(name, model, processing=declared)
    pictures = [picture(np.minimum(digits.images[index] * 16, 255)) for index in range(10)]

    value = encode_request_msgpack(asking("image", *pictures))
    where = await worker.send(name, value, ce_id="digits", content_type=MSGPACK)

    result = await worker.result(name, "digits")
    assert result.status == "succeeded", result.error
    outputs = named(result)
    assert list(outputs) == ["confidence", "label"]
    assert outputs["label"].shape == (10, 3)
    right = [label.decode() == DIGITS[digits.target[n]] for n, label in enumerate(outputs["label"][:, 0])]
    assert sum(right) >= 8
    receipt = (await worker.outcomes(name, 1))[where]
    # The chain: the record, the declared steps, the model file, the answer.
    assert receipt.input_sha256 == hashlib.sha256(value).hexdigest()
    assert receipt.processing_sha256 == processing.sha256(declared)
    assert receipt.artifact_sha256 == hashlib.sha256(model.content).hexdigest()
    assert receipt.output_sha256 == output_digest(result.outputs)
    assert receipt.timings_ns.compute_input > 0


async def test_a_jpeg_as_a_data_url_in_json(worker, backbone):
    name, (model, digits) = backbone.model(), digit_model()
    await worker.upload(name, model, processing=classification(DIGITS, k=1))
    large = Image.fromarray(np.minimum(digits.images[0] * 16, 255).astype(np.uint8)).resize((256, 256))
    large.save(buffer := io.BytesIO(), "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [url]}

    await worker.send(name, orjson.dumps({"inputs": [tensor]}), ce_id="jpeg")

    assert named(await worker.result(name, "jpeg"))["label"].tolist() == [[b"zero"]]


async def test_a_picture_that_lies_in_the_store(worker, backbone):
    name, (model, digits) = backbone.model(), digit_model()
    await worker.upload(name, model, processing=classification(DIGITS, k=1))
    tensor = asking("image", picture(np.minimum(digits.images[0] * 16, 255))).inputs[0]
    claim = to_builtins(await worker.store(bytes(tensor.data)))
    request = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": claim}]}

    await worker.send(name, orjson.dumps(request), ce_id="claimed")

    assert named(await worker.result(name, "claimed"))["label"].tolist() == [[b"zero"]]


async def test_texts_of_many_requests_run_in_batches_and_give_what_they_give_alone(worker, backbone):
    name, model = backbone.model(), embedder()
    tokenizer = await worker.store(tokenizer_json())
    declared = embedding(tokenizer)
    texts = [
        " ".join(random.Random(seed).choices(["good", "bad", "movie", "not"], k=1 + seed % 12)) for seed in range(30)
    ]
    # Queued before the model can answer: all of it is there when it can.
    for index, text in enumerate(texts):
        value = encode_request_msgpack(asking("text", text))
        await worker.send(name, value, ce_id=f"t{index}", partition=0, content_type=MSGPACK)
    await worker.upload(name, model, processing=declared)
    outcomes = await worker.outcomes(name, 30)
    assert {receipt.status for receipt in outcomes.values()} == {"succeeded"}
    assert max(receipt.batch.size for receipt in outcomes.values()) > 1
    for index in (0, 11, 29):
        await worker.send(
            name, encode_request_msgpack(asking("text", texts[index])), ce_id=f"alone{index}", content_type=MSGPACK
        )
        alone = named(await worker.result(name, f"alone{index}"))["embedding"]
        together = named(await worker.result(name, f"t{index}"))["embedding"]
        np.testing.assert_allclose(together, alone, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, rtol=1e-6)


async def test_tensors_may_be_sent_too_and_every_output_asked_for(worker, backbone):
    name, model = backbone.model(), embedder()
    await worker.upload(name, model, processing=embedding(await worker.store(tokenizer_json())))
    tokens = [[2, 4, 6, 3]]
    inputs = [
        {"name": "input_ids", "datatype": "INT64", "shape": [1, 4], "data": tokens},
        {"name": "attention_mask", "datatype": "INT64", "shape": [1, 4], "data": [[1] * 4]},
    ]
    await worker.send(name, orjson.dumps({"inputs": inputs}), ce_id="tokens")
    asked = {"outputs": [{"name": "states"}, {"name": "embedding"}]}
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["good movie"]}
    await worker.send(name, orjson.dumps({"inputs": [text], **asked}), ce_id="text")

    by_tokens, by_text = named(await worker.result(name, "tokens")), named(await worker.result(name, "text"))
    assert list(by_tokens) == ["embedding"]
    assert list(by_text) == ["states", "embedding"]
    assert by_text["states"].shape == (1, 16, 6)
    np.testing.assert_allclose(by_tokens["embedding"], by_text["embedding"], atol=1e-6)


async def test_hostile_requests_fail_by_name_and_what_follows_flows(worker, backbone):
    name, (model, digits) = backbone.model(), digit_model()
    await worker.upload(name, model, processing=classification(DIGITS))
    good = picture(np.minimum(digits.images[0] * 16, 255))
    frames = [Image.new("L", (8, 8), shade) for shade in range(50)]
    frames[0].save(gif := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    hostile = {
        "bomb": asking("image", good, bomb()),
        "truncated": asking("image", good[: len(good) // 2]),
        "gif": asking("image", gif.getvalue()),
        "text": asking("image", "hello"),
        "many": asking("image", *[b""] * 10_000),
        "strange": asking("picture", good),
    }
    for request_id, request in hostile.items():
        value = encode_request_msgpack(request)
        await worker.send(name, value, ce_id=request_id, partition=0, content_type=MSGPACK)
    await worker.send(
        name, encode_request_msgpack(asking("image", good)), ce_id="good", partition=0, content_type=MSGPACK
    )

    assert named(await worker.result(name, "good"))["label"][0, 0] == b"zero"
    outcomes = await worker.outcomes(name, len(hostile) + 1)
    failed = {receipt.request_id: receipt for receipt in outcomes.values() if receipt.status == "failed"}
    assert {request_id: receipt.error_code for request_id, receipt in failed.items()} == dict.fromkeys(
        hostile, "invalid_input"
    )
    assert {receipt.model_version for receipt in failed.values()} == {1}
    assert "element 1 of 'image' has 2500000000 pixels" in (await worker.result(name, "bomb")).error["message"]
    assert len(await worker.dead_letters(name)) == len(hostile)


async def test_one_bad_picture_does_not_hurt_the_requests_beside_it(worker, backbone):
    name, (model, digits) = backbone.model(), digit_model()
    good = picture(np.minimum(digits.images[1] * 16, 255))
    for index in range(6):
        request = asking("image", good if index % 2 else good[:40])
        await worker.send(name, encode_request_msgpack(request), ce_id=f"p{index}", partition=0, content_type=MSGPACK)
    await worker.upload(name, model, processing=classification(DIGITS))
    outcomes = await worker.outcomes(name, 6)
    by_offset = [outcomes[0, offset].status for offset in range(6)]
    assert by_offset == ["failed", "succeeded"] * 3


async def test_a_broken_tokenizer_makes_the_version_not_ready_and_says_why(worker, backbone):
    name = backbone.model()
    await worker.upload(name, embedder(), processing=embedding(await worker.store(b"{}")))
    await worker.send(name, encode_request_msgpack(asking("text", "good")), ce_id="one", content_type=MSGPACK)
    result = await worker.result(name, "one")
    assert result.status == "failed"
    assert result.error["code"] == "not_ready"
    assert "the tokenizer does not load" in result.error["message"]


async def test_two_versions_of_one_file_with_other_steps_answer_each_in_its_way(worker, backbone):
    name, (model, digits) = backbone.model(), digit_model()
    good = encode_request_msgpack(asking("image", picture(np.minimum(digits.images[0] * 16, 255))))
    await worker.upload(name, model, processing=classification(DIGITS, k=1))
    await worker.upload(name, model, processing=classification(tuple(word.upper() for word in DIGITS), k=1))
    await worker.upload(name, model)
    for version in (1, 2, 3):
        await worker.send(name, good, ce_id=f"v{version}", model_version=str(version), content_type=MSGPACK)
    assert named(await worker.result(name, "v1"))["label"].tolist() == [[b"zero"]]
    assert named(await worker.result(name, "v2"))["label"].tolist() == [[b"ZERO"]]
    assert "unknown input 'image'" in (await worker.result(name, "v3")).error["message"]
    await worker.log.publish(ModelPromoted(model=name, version=2))
    raw = from_numpy("x", (digits.data[:1] / 16).astype(np.float32))
    await worker.send(
        name,
        orjson.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": to_numpy(raw).ravel().tolist()}]}
        ),
        ce_id="array",
        model_version="2",
    )
    assert named(await worker.result(name, "array"))["label"].tolist() == [[b"ZERO"]]


async def test_a_file_of_labels_that_is_not_there(worker, backbone):
    name, (model, _) = backbone.model(), digit_model()
    held = await worker.store(b"one\ntwo\n")
    missing = artifact(b"nobody stored this")
    missing = type(held)(
        uri=held.uri.replace(held.sha256[2:], missing.sha256[2:]),
        sha256=missing.sha256,
        byte_size=missing.byte_size,
    )
    await worker.upload(name, model, processing=classification(missing))
    await worker.send(name, encode_request_msgpack(asking("image", b"")), ce_id="one", content_type=MSGPACK)
    result = await worker.result(name, "one")
    assert result.error["code"] == "not_ready"
    assert "no artifact" in result.error["message"]
