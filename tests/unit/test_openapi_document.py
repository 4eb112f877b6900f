"""The OpenAPI document by itself: it names what is served, and all that it refers to is there."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re

import jsonschema_rs
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

import services.gateway
from services.gateway.answers import STATUS_OF_CODE
from services.gateway.api import application
from services.gateway.gateway import Gateway
from services.gateway.openapi.operations import OPERATIONS
from services.gateway.routes_infer import PATH
from services.gateway.settings import GatewaySettings

INFER = {route for route in OPERATIONS if route.endswith("/infer")}


@pytest.fixture(scope="module")
def document():
    return application(Gateway(GatewaySettings()))._app._api.openapi()


def test_what_is_served_is_what_is_documented(document):
    modules = [
        importlib.import_module(f"services.gateway.{found.name}")
        for found in pkgutil.iter_modules(services.gateway.__path__)
        if found.name.startswith("routes_")
    ]
    routers = [each for module in modules for each in vars(module).values() if isinstance(each, APIRouter)]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    served = {f"{method} {route.path}" for route in routes for method in route.methods}
    assert served | INFER == OPERATIONS.keys()
    assert OPERATIONS.keys() == {
        f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations
    }
    assert all(PATH.fullmatch(route.removeprefix("POST ")) for route in INFER)


def test_every_operation_is_told_of_and_shown(document):
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    for route, operation in operations.items():
        assert operation["summary"], route
        assert OPERATIONS[route].examples, route
        named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", route)), route
        assert all(response["description"] for response in operation["responses"].values())


def test_every_code_that_has_a_status_is_told_of_somewhere():
    told = {code for operation in OPERATIONS.values() for code in operation.codes}
    not_about_a_route = {"unauthorized", "method_not_allowed"}
    assert told | not_about_a_route == {*STATUS_OF_CODE, "internal"}


def test_all_references_lead_somewhere_and_all_schemas_are_schemas(document):
    schemas = document["components"]["schemas"]
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert referred <= schemas.keys()
    for schema in schemas.values():
        jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})


def test_examples_of_requests_are_of_their_schema(document):
    for route, operation in OPERATIONS.items():
        method, path = route.split(" ")
        contents = document["paths"][path][method.lower()].get("requestBody", {"content": {}})["content"]
        schema = contents.get("application/json", {}).get("schema")
        for name, example in operation.examples.items():
            if example.body is None or example.content_type != "application/json":
                continue
            whole = {**schema, "components": document["components"]}
            assert jsonschema_rs.is_valid(whole, example.body) or name.startswith("wrong"), (route, name)
