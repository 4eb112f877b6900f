"""The OpenAPI document against a real gateway: every example is sent, and every route asks for a key."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import jsonschema_rs
import pytest
import pytest_asyncio

from services.gateway.openapi.examples import EVENTS, JSON, MODEL, REQUEST_ID
from services.gateway.openapi.operations import OPERATIONS, PUBLIC
from services.gateway.settings import GatewaySettings
from support.digits import served
from support.gateway import Gateway
from support.ports import free_port

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
EXAMPLES = [(route, name) for route, operation in OPERATIONS.items() for name in operation.examples]
IN_PATH = re.compile(r"{(\w+)}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def digits(backbone):
    settings = backbone.settings(GatewaySettings, gateway_port=free_port(), request_timeout_s=20, load_timeout_s=10)
    async with served(backbone, settings) as there:
        there.document = (await there.gateway.client.get("/openapi.json")).json()
        yield there


def documented(document, route, name):
    """An example as the document has it, beside its schemas: what a reader of the document alone would send."""
    method, path = route.split(" ")
    operation = document["paths"][path][method.lower()]
    sent = {"path": {}, "query": {}, "header": {}}
    for parameter in operation["parameters"]:
        if "example" in parameter:
            sent[parameter["in"]][parameter["name"]] = parameter["example"]
        elif name in parameter.get("examples", {}):
            sent[parameter["in"]][parameter["name"]] = parameter["examples"][name]["value"]
    content_type = body = None
    for media_type, content in operation.get("requestBody", {"content": {}})["content"].items():
        if name in content.get("examples", {}):
            content_type, body = media_type, content["examples"][name]["value"]
    answers = {
        (status, media_type): content["examples"][name]["value"]
        for status, response in operation["responses"].items()
        for media_type, content in response.get("content", {}).items()
        if name in content.get("examples", {})
    }
    return SimpleNamespace(
        method=method, path=path, sent=sent, body=body, content_type=content_type, answers=answers, operation=operation
    )


async def subject(digits, example, name):
    """The model and the request that an example is about: its own, if it changes them."""
    changes = example.method == "POST" and "/v2/repository/models/{model}" in example.path
    model = await digits.another() if changes else digits.model
    if "{request_id}" not in example.path:
        return model, REQUEST_ID
    return model, await (digits.answered() if name in {"succeeded", "received"} else digits.queued())


@pytest.mark.parametrize(("route", "name"), EXAMPLES)
async def test_an_example_is_what_happens(digits, route, name):
    example = documented(digits.document, route, name)
    model, request_id = await subject(digits, example, name)
    about = example.sent["path"] | {"model": model, "request_id": request_id}
    if "{export_id}" in example.path:
        about["export_id"] = await digits.exported(model)
    path = IN_PATH.sub(lambda found: about[found[1]], example.path)
    body = example.body if example.content_type != JSON else json.dumps(example.body)
    headers = example.sent["header"] | ({"content-type": example.content_type} if body is not None else {})
    async with digits.gateway.client.stream(
        example.method, path, params=example.sent["query"], headers=headers, content=body
    ) as response:
        content = await response.aread()

    if not example.answers:
        assert (response.status_code, content) == (204, b"")
        return
    [((status, media_type), shown)] = example.answers.items()
    assert (str(response.status_code), response.headers["content-type"].partition(";")[0]) == (status, media_type), (
        content
    )
    described = example.operation["responses"][status]
    assert {header.lower() for header in described["headers"]} - {"content-encoding"} - set(
        response.headers
    ) <= OPTIONAL
    if media_type == EVENTS:
        content = json.dumps(fields(content.decode()))
    elif media_type != JSON:
        assert content.decode() == shown.replace(MODEL, model).replace(REQUEST_ID, request_id)
        return
    schema = closed(described["content"][media_type]["schema"], digits.document)
    for given in (json.loads(content), shown):
        jsonschema_rs.validate(schema, given)
    if route.endswith("/infer") and status == "200":
        assert json.loads(content) == json.loads(json.dumps(shown).replace(MODEL, model))
    assert "code" not in shown or json.loads(content)["code"] == shown["code"]


def fields(event):
    """A stream of one server-sent event."""
    parsed = dict(line.split(": ", 1) for line in event.splitlines() if line)
    return parsed | {"retry": int(parsed["retry"])}


OPTIONAL = {"inference-header-content-length"}
"""Only binary answers have it."""


def closed(schema, document):
    """The schema with its components, under which a field that it does not name is an error."""

    def close(node):
        if isinstance(node, list):
            return [close(each) for each in node]
        if not isinstance(node, dict):
            return node
        node = {key: close(value) for key, value in node.items()}
        return {"additionalProperties": False, **node} if isinstance(node.get("properties"), dict) else node

    return close({**schema, "components": {"schemas": document["components"]["schemas"]}})


async def test_every_route_but_the_public_ones_asks_for_a_key(backbone):
    settings = backbone.settings(GatewaySettings, gateway_port=free_port(), api_keys=json.dumps({"secret-key": "acme"}))
    async with Gateway(settings) as gateway:
        await gateway.ready()
        for route in OPERATIONS:
            method, path = route.split(" ")
            response = await gateway.client.request(method, IN_PATH.sub("1", path))
            assert (response.status_code != 401) == (route in PUBLIC), route
            if response.status_code == 401:
                assert response.headers["www-authenticate"] == "Bearer"
