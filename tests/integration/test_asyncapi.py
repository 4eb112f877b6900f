"""The requests of the AsyncAPI document, sent with a Kafka client that knows nothing but the document, to a worker."""

from __future__ import annotations

import base64
import json

import httpx
import jsonschema_rs
import msgpack
import pytest

from services.gateway.settings import GatewaySettings
from services.worker.settings import WorkerSettings
from shared import asyncapi, kafka
from shared.tensors import to_json
from support import onnx_models
from support.gateway import Gateway
from support.ports import free_port
from support.waiting import eventually
from support.worker_rig import rig, worker_running

pytestmark = pytest.mark.stack


@pytest.fixture
async def worker(backbone):
    """A worker that holds the documents' model, and may send copies of replies."""
    settings = backbone.settings(WorkerSettings, threads=1, request_partitions=1)
    settings = settings.model_copy(update={"reply_topic_prefixes": (f"copy-{settings.topic_prefix}",)})
    elsewhere = settings.model_copy(update={"topic_prefix": f"copy-{settings.topic_prefix}"})
    await kafka.ensure_topics(elsewhere, "any")
    async with rig(settings) as there, worker_running(settings):
        there.copies = elsewhere.topics.requests("any")
        there.model = backbone.model()
        await there.upload(there.model, onnx_models.digits())
        yield there


def on_the_wire(example):
    """The value of a record: bytes are in base64 in the document."""
    payload, content_type = example["payload"], example["headers"]["content-type"]
    if content_type == "application/octet-stream":
        return base64.b64decode(payload)
    if content_type == "application/json":
        return json.dumps(payload).encode()
    tensors = [tensor | {"data": base64.b64decode(tensor["data"])} for tensor in payload["inputs"]]
    return msgpack.packb(payload | {"inputs": tensors})


async def test_every_example_of_a_request_is_answered(worker):
    document = asyncapi.document(worker.settings.topics)
    messages = [document["components"]["messages"][name] for name in document["channels"]["requests"]["messages"]]
    examples = [example for message in messages for example in message["examples"]]
    assert len(examples) == 3
    for example in examples:
        await worker.send(worker.model, on_the_wire(example), **example["headers"])
    for example in examples:
        result = await worker.result(worker.model, example["headers"]["ce_id"])
        assert result.status == "succeeded", result.error
        assert [(tensor.name, to_json(tensor)) for tensor in result.outputs] == [("class", [3])]
    outcomes = await worker.outcomes(worker.model, len(examples))
    assert {receipt.tenant for receipt in outcomes.values()} == {None, "acme"}


async def test_a_copy_of_the_reply_is_as_documented(worker):
    document = asyncapi.document(worker.settings.topics)
    message = document["components"]["messages"]["InferenceAnswered"]
    shown = message["examples"][0]
    [asked] = [
        example
        for example in document["components"]["messages"]["InferenceRequestJson"]["examples"]
        if example["headers"]["ce_id"] == shown["headers"]["ce_id"]
    ]
    headers = asked["headers"] | {"reply-topic": worker.copies}
    await worker.send(worker.model, on_the_wire(asked), key="the key", **headers)

    async def copied():
        return await worker.read(worker.copies)

    [copy] = await eventually(copied, what="a copy")
    assert copy.key == b"the key"
    body = json.loads(copy.value)
    assert body == shown["payload"] | {"model_name": worker.model}
    jsonschema_rs.validate({**message["payload"], "components": {"schemas": document["components"]["schemas"]}}, body)
    sent = {name: value.decode() for name, value in copy.headers}
    jsonschema_rs.validate(message["headers"], sent)
    assert sent.keys() == shown["headers"].keys()
    assert sent["x-order"] == shown["headers"]["x-order"]
    assert sent["ce_id"] == shown["headers"]["ce_id"]


async def test_a_dead_letter_is_as_documented(worker):
    message = asyncapi.document(worker.settings.topics)["components"]["messages"]["DeadLettered"]
    [shown] = message["examples"]
    value = base64.b64decode(shown["payload"])
    await worker.send(worker.model, value, content_type="application/json", ce_id="not-json")
    await worker.result(worker.model, "not-json")
    await worker.outcomes(worker.model, 1)
    [letter] = await worker.dead_letters(worker.model)
    sent = {name: content.decode() for name, content in letter.headers}
    jsonschema_rs.validate(message["headers"], sent)
    assert (letter.value, sent.keys()) == (value, shown["headers"].keys())
    assert sent["x-error-code"] == shown["headers"]["x-error-code"]


async def test_a_gateway_serves_the_document_of_its_own_topics(backbone):
    settings = backbone.settings(GatewaySettings, gateway_port=free_port())
    async with Gateway(settings), httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.gateway_port}") as client:
        response = await client.get("/asyncapi")
    assert response.status_code == 200
    assert response.json() == json.loads(json.dumps(asyncapi.document(settings.topics)))
