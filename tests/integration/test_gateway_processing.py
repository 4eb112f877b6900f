"""Assets, declarations, and requests of models with steps around them, through a real gateway."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
import pytest_asyncio

from services.gateway.settings import GatewaySettings
from shared.processing import parse
from support.facts import PROCESSING, SIGNATURE
from support.gateway import Gateway, worker, writer
from support.ports import free_port
from support.processing import tokenizer_json
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
LIMIT_BYTES = 64 * 1024
ASSETS = "/v2/repository/assets"
DECLARED = {
    "preprocessing": [{"kind": "decode_image", "output": "x", "width": 2, "height": 2, "color": "L", "layout": "N"}],
    "postprocessing": [
        {"kind": "softmax", "output": "y", "into": "probabilities"},
        {"kind": "top_k", "output": "probabilities", "values": "confidence", "indices": "class", "k": 2},
        {"kind": "labels", "indices": "class", "into": "label", "labels": ["cat", "dog"]},
    ],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(backbone):
    settings = backbone.settings(GatewaySettings, gateway_port=free_port(), max_upload_bytes=LIMIT_BYTES)
    async with Gateway(settings) as gateway:
        yield await gateway.ready()


@pytest_asyncio.fixture(loop_scope="module")
async def model(backbone):
    return backbone.model()


async def store(gateway, content, **options):
    return await gateway.client.post(ASSETS, content=content, **options)


async def upload(gateway, model, declared):
    """A version with these steps; `declared` is a document or the digest of one."""
    if isinstance(declared, dict):
        declared = (await store(gateway, json.dumps(declared).encode())).json()["sha256"]
    path = f"/v2/repository/models/{model}/versions"
    return await gateway.client.post(path, content=b"model", params={"processing": declared})


# ------------------------------------------------------------------ assets


async def test_a_file_is_stored_once_under_its_digest(gateway):
    first, again = await store(gateway, b"labels"), await store(gateway, b"labels")
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert first.json()["sha256"] == hashlib.sha256(b"labels").hexdigest()
    assert first.json()["byte_size"] == 6
    assert first.json()["uri"].startswith("file://")


@pytest.mark.parametrize(
    ("content", "promised", "status", "code"),
    [
        (b"", None, 400, "invalid_input"),
        (b"x" * (LIMIT_BYTES + 1), None, 413, "too_large"),
        (b"labels", b"labels", 201, None),
        (b"labels", b"other", 400, "digest_mismatch"),
    ],
)
async def test_what_is_not_stored(gateway, content, promised, status, code):
    headers = {}
    if promised is not None:
        digest = base64.b64encode(hashlib.sha256(promised).digest()).decode()
        headers["content-digest"] = f"sha-256=:{digest}:"
    response = await store(gateway, content, headers=headers)
    assert response.status_code == status
    assert response.json().get("code") == code


# ------------------------------------------------------------------ declarations


async def test_a_declaration_is_part_of_its_version_for_good(gateway, model):
    response = await upload(gateway, model, DECLARED)
    assert response.status_code == 202, response.text
    shown = (await gateway.client.get(response.json()["status_url"])).json()
    assert parse(json.dumps(shown["processing"]).encode()) == PROCESSING


async def test_a_version_without_one_has_none(gateway, model):
    response = await gateway.client.post(f"/v2/repository/models/{model}/versions", content=b"model")
    assert (await gateway.client.get(response.json()["status_url"])).json()["processing"] is None


async def test_a_tokenizer_is_an_asset_that_a_declaration_names(gateway, model):
    claim = (await store(gateway, tokenizer_json())).json()
    response = await upload(gateway, model, {"preprocessing": [{"kind": "tokenize", "tokenizer": claim}]})
    assert response.status_code == 202, response.text
    missing = claim | {"uri": claim["uri"].replace(claim["sha256"][2:], "0" * 62)}
    response = await upload(gateway, model, {"preprocessing": [{"kind": "tokenize", "tokenizer": missing}]})
    assert (response.status_code, response.json()["code"]) == (400, "artifact_not_found")
    elsewhere = claim | {"uri": "file:///etc/passwd"}
    response = await upload(gateway, model, {"preprocessing": [{"kind": "tokenize", "tokenizer": elsewhere}]})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_input")


@pytest.mark.parametrize(
    ("declared", "code", "words"),
    [
        ("0" * 64, "artifact_not_found", "no artifact"),
        ("nonsense", "invalid_input", "processing"),
        ({"preprocessing": [{"kind": "run_python"}]}, "invalid_input", "$.preprocessing[0].kind"),
        ({"preprocesing": []}, "invalid_input", "unknown field `preprocesing`"),
    ],
)
async def test_what_is_no_declaration_is_refused_with_the_place(gateway, model, declared, code, words):
    response = await upload(gateway, model, declared)
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert words in response.json()["error"]
    assert (await gateway.client.get(f"/v2/repository/models/{model}/versions")).status_code == 404


async def test_the_openapi_document_knows_every_step(gateway):
    document = (await gateway.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    steps = schemas["Processing"]["properties"]["preprocessing"]["items"]["anyOf"]
    assert {step["$ref"].rpartition("/")[2] for step in steps} == {"Tokenize", "DecodeImage"}
    assert {"Softmax", "TopK", "Labels", "MeanPool", "L2Normalize"} <= schemas.keys()
    asset = document["paths"][ASSETS]["post"]["requestBody"]["content"]
    assert asset["application/json"]["schema"] == {"$ref": "#/components/schemas/Processing"}
    upload = document["paths"]["/v2/repository/models/{model}/versions"]["post"]["parameters"]
    assert "processing" in {parameter["name"] for parameter in upload}


# ------------------------------------------------------------------ requests

IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["data:image/png;base64,AA=="]}
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}


@pytest_asyncio.fixture(loop_scope="module")
async def served(gateway, model):
    """A model with steps that is ready; its name and the requests that its worker has seen."""
    assert (await upload(gateway, model, DECLARED)).status_code == 202
    async with writer(gateway.settings) as log:
        await log.make_ready(model, 1, SIGNATURE)
    await gateway.until(f"/v2/models/{model}", lambda response: response.status_code == 200)
    async with worker(gateway.settings, model) as there:
        yield model, there.records


async def test_metadata_and_config_show_what_callers_send_and_get(gateway, served):
    metadata = (await gateway.client.get(f"/v2/models/{served[0]}")).json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert metadata["outputs"] == [
        {"name": "confidence", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "label", "datatype": "BYTES", "shape": [-1, 2]},
    ]
    config = (await gateway.client.get(f"/v2/models/{served[0]}/config")).json()
    assert config["input"][0]["data_type"] == "TYPE_STRING"


@pytest.mark.parametrize("tensor", [IMAGE, TENSOR], ids=["picture", "array"])
async def test_a_picture_or_an_array_may_be_sent_and_goes_on_as_it_is(gateway, served, tensor):
    model, records = served
    body = {"inputs": [tensor], "parameters": {"behaviour": "silent", "timeout": 1_000_000}}
    response = await gateway.client.post(f"/v2/models/{model}/infer", json=body)
    assert response.status_code == 504
    await eventually(lambda: records, what="the record")
    [(_, request)] = records
    assert [(sent.name, sent.datatype) for sent in request.inputs] == [(tensor["name"], tensor["datatype"])]


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([], [], "input 'image' is missing"),
        ([IMAGE, TENSOR], [], "unknown input 'x'"),
        ([IMAGE | {"shape": [1, 1]}], [], "has shape [1, 1]"),
        ([IMAGE | {"datatype": "FP32", "data": [1.0]}], [], "expected BYTES"),
        ([IMAGE | {"shape": [2000], "data": [""] * 2000}], [], "2000 elements, above 1024"),
        ([IMAGE], [{"name": "nothing"}], "unknown output 'nothing'"),
    ],
)
async def test_what_the_model_with_its_steps_does_not_take_is_never_enqueued(gateway, served, inputs, outputs, words):
    model, records = served
    response = await gateway.client.post(f"/v2/models/{model}/infer", json={"inputs": inputs, "outputs": outputs})
    assert response.status_code == 400
    assert words in response.json()["error"]
    assert records == []
