"""The dashboard of a running platform, clicked through in a headless Chromium: what it shows is what the log says."""

from __future__ import annotations

import json
import re
import time

import httpx
import pytest

from support import onnx_models
from support.browser import PATIENCE_MS, chromium

pytestmark = pytest.mark.stack
LINEAR = onnx_models.linear()
ASKED = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]}
REQUESTS = 20
WITHIN_S = 90.0


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def gateway(stack):
    with httpx.Client(base_url=stack.gateway_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def model(backbone, gateway):
    """Two versions that are ready, the first of which answers."""
    name = backbone.model()
    for number in (1, 2):
        upload = gateway.post(f"/v2/repository/models/{name}/versions", content=LINEAR.content)
        assert upload.status_code == 202, upload.text
        _until(lambda number=number: _state(gateway, name, number) == "ready")
    _until(lambda: gateway.get(f"/v2/models/{name}/ready").status_code == 200)
    return name


def _state(gateway, name, number):
    return gateway.get(f"/v2/repository/models/{name}/versions/{number}").json()["state"]


def _until(look):
    deadline_s = time.monotonic() + WITHIN_S
    while not look():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.1)


def test_an_operator_sees_the_traffic_follows_a_request_promotes_and_rolls_back(stack, browser, gateway, model):
    answers = [gateway.post(f"/v2/models/{model}/infer", content=json.dumps(ASKED)) for _ in range(REQUESTS)]
    assert {answer.status_code for answer in answers} == {200}
    request_id = answers[-1].headers["x-request-id"]

    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(2 * PATIENCE_MS)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(stack.monitor_url)
    row = page.get_by_role("table", name="Models").get_by_role("row", name=re.compile(re.escape(f"{model} v1")))
    row.wait_for()
    services = page.get_by_role("table", name="Services")
    for service in ("gateway", "worker-1", "worker-2", "optimizer", "monitor"):
        services.get_by_role("row", name=re.compile(rf"^{service} ")).get_by_text("up", exact=True).wait_for()

    row.get_by_role("link", name=model).click()
    page.get_by_role("heading", name=model, exact=True).wait_for()
    page.get_by_text("Version 1", exact=True).first.wait_for()
    page.get_by_role("button", name="Promote version 2").click()
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    page.get_by_text(f"Version 2 of {model} answers now.").wait_for()
    assert _active(gateway, model) == 2
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.get_by_text(f"Version 1 of {model} answers again.").wait_for()
    assert _active(gateway, model) == 1
    page.get_by_role("table", name="Variants of version 1").get_by_text("serves").wait_for()

    page.get_by_role("link", name="Requests").click()
    page.get_by_label("Request id").fill(request_id)
    page.get_by_role("button", name="Show").click()
    page.get_by_text("Answered in").wait_for()
    for step in ("enqueued", "taken", "answered"):
        page.get_by_text(step, exact=True).wait_for()

    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("heading", name=re.compile(re.escape(f"{model} v2"))).wait_for()
    page.get_by_role("link", name="Alerts").click()
    page.get_by_role("heading", name="Rules").wait_for()
    assert not errors
    page.close()

    _until(lambda: _counted(stack, model) >= REQUESTS)
    assert _counted(stack, model) == REQUESTS


def _counted(stack, model):
    """Requests that succeeded, as the monitor knows them."""
    found = [each for each in httpx.get(f"{stack.monitor_url}/v1/stats").json()["models"] if each["model"] == model]
    return sum(each["outcomes"].get("succeeded", 0) for each in found)


def _active(gateway, model):
    return gateway.get(f"/v2/repository/models/{model}/versions").json()["active"]
