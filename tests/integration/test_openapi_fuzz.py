"""schemathesis against the OpenAPI document and a running gateway: what it sends, valid or not, is answered as told.

Each route gets cases that its schemas allow and cases that they don't, half of them about a model that is served. The
cases are the same in every run. 503 and 504 are honest answers (a model that is not loaded, a `timeout` of 1 µs). That
a header is nonsense is no reason to refuse what is clear without it: only a wrong body or query must be refused.
"""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi import checks

from services.gateway.openapi.operations import OPERATIONS
from services.gateway.settings import GatewaySettings
from support.digits import served
from support.ports import free_port

pytestmark = [
    pytest.mark.stack,
    pytest.mark.asyncio(loop_scope="module"),
    # Hypothesis sees the generator change, and blames the strategy: it was the gateway, on its thread.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]
CHANGES = ("POST /v2/repository/models/{model}", "DELETE")
HONEST = {503, 504}
REFUSED = {408, 410, 413}
"""schemathesis does not know these as refusals."""
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
OF_BODIES = [checks.negative_data_rejection]
TAKES_ANY_BYTES = "POST /v2/repository/assets"
"""A declaration is a file like any other until an upload names it."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fuzzed(backbone):
    """A gateway, a model that is served, and one that may come to harm."""
    settings = backbone.settings(
        GatewaySettings,
        gateway_port=free_port(),
        request_timeout_s=2,
        max_request_timeout_s=2,
        load_timeout_s=0.5,
        stall_timeout_s=2,
        event_stream_s=0.1,
        max_upload_bytes=1024 * 1024,
    )
    async with served(backbone, settings) as digits:
        document = (await digits.gateway.client.get("/openapi.json")).json()
        digits.schema = schemathesis.openapi.from_dict(document)
        digits.victim = await digits.another()
        digits.request_id = await digits.queued()
        yield digits


@pytest.mark.parametrize("route", OPERATIONS)
async def test_a_route_answers_as_documented(fuzzed, route):
    method, path = route.split(" ")
    operation = fuzzed.schema[path][method]
    model = fuzzed.victim if route.startswith(CHANGES) else fuzzed.model
    known = {"model": model, "version": "1", "request_id": fuzzed.request_id, "region": "frames"}
    about = {name: value for name, value in known.items() if f"{{{name}}}" in path}
    modes = [GenerationMode.POSITIVE]
    if operation.body or operation.query:
        modes.append(GenerationMode.NEGATIVE)
    cases = [
        operation.as_strategy(generation_mode=mode, **how)
        for mode in modes
        for how in ([{"path_parameters": about}, {}] if about else [{}])
    ]

    @settings(
        max_examples=250 if route.endswith("/infer") else 30,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(cases))
    def send(case):
        response = case.call(base_url=fuzzed.gateway.url, timeout=20)
        assert response.status_code < 500 or response.status_code in HONEST, response.text
        assert response.status_code not in {429, 503} or int(response.headers["retry-after"][0]) >= 1
        wrong = is_wrong(case) and route != TAKES_ANY_BYTES and response.status_code not in REFUSED
        case.validate_response(response, checks=CHECKS + (OF_BODIES if wrong else []))

    await asyncio.to_thread(send)


def is_wrong(case):
    """Whether the schemas forbid its body or query."""
    parts = (ParameterLocation.BODY, ParameterLocation.QUERY)
    components = (case.meta.components[part] for part in parts if part in case.meta.components)
    return any(component.mode is GenerationMode.NEGATIVE for component in components)


@pytest.mark.parametrize("route", OPERATIONS)
async def test_other_methods_are_refused(fuzzed, route):
    path = route.split(" ")[1].format(model=fuzzed.model, version="1", request_id="1", region="frames", export_id="1")
    for method in ("PUT", "PATCH", "TRACE"):
        response = await fuzzed.gateway.client.request(method, path)
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed"), route
        assert route.split(" ")[0] in response.headers["allow"]
