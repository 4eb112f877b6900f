"""Uploads, versions and routing through real gateways: the registry's log is real, the optimizer a few events."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket

import pytest
import pytest_asyncio

from services.gateway.settings import GatewaySettings
from shared.events import VariantRejected
from support.gateway import Gateway, echo_signature, writer
from support.ports import free_port
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
LIMIT_BYTES = 3 * 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways(backbone):
    """Two gateways on the same topics."""
    first = backbone.settings(GatewaySettings, gateway_port=free_port(), max_upload_bytes=LIMIT_BYTES)
    second = first.model_copy(update={"gateway_port": free_port(), "instance": f"{first.instance}-b"})
    async with Gateway(first) as one, Gateway(second) as two:
        await one.ready()
        await two.ready()
        yield one, two


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(gateways):
    return gateways[0]


@pytest_asyncio.fixture(loop_scope="module")
async def model(backbone):
    return backbone.model()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log(gateways):
    async with writer(gateways[0].settings) as log:
        yield log


def repository(model):
    return f"/v2/repository/models/{model}"


async def upload(gateway, model, content=b"model", *, headers=None, **query):
    return await gateway.client.post(
        f"{repository(model)}/versions", content=content, params={"format": "onnx", **query}, headers=headers
    )


async def served(gateway, log, model, versions=1):
    """So many versions, all ready."""
    for number in range(1, versions + 1):
        assert (await upload(gateway, model, b"model %d" % number)).json()["version"] == number
        await log.make_ready(model, number, echo_signature("FP32"))
    last = f"{repository(model)}/versions/{versions}"
    await gateway.until(last, lambda response: response.json()["state"] == "ready")


# ------------------------------------------------------------------ uploads


async def test_an_upload_is_numbered_stored_and_shown(gateway, model):
    content = bytes(range(256)) * 8192
    response = await upload(gateway, model, content)
    assert response.status_code == 202
    assert response.json() == {
        "name": model,
        "version": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "state": "uploaded",
        "status_url": f"{repository(model)}/versions/1",
    }
    state = (await gateway.client.get(response.headers["location"])).json()
    assert (state["state"], state["progress"], state["byte_size"]) == ("uploaded", None, len(content))
    not_yet = await gateway.client.get(f"/v2/models/{model}")
    assert (not_yet.status_code, not_yet.json()["code"], not_yet.headers["retry-after"]) == (503, "not_ready", "1")
    assert (await upload(gateway, model, version=7)).json()["version"] == 7
    assert (await upload(gateway, model)).json()["version"] == 8


async def test_a_taken_version_is_409(gateway, model):
    assert (await upload(gateway, model, version=3)).status_code == 202
    taken = await upload(gateway, model, version=3)
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    assert "version 3" in taken.json()["error"]


async def test_the_same_version_at_once_goes_to_one_of_two_gateways(gateways, model):
    responses = await asyncio.gather(*(upload(gateway, model, version=1) for gateway in gateways))
    assert sorted(response.status_code for response in responses) == [202, 409]


async def test_two_gateways_at_once_give_different_versions(gateways, model):
    responses = await asyncio.gather(*(upload(gateways[n % 2], model, b"%d" % n) for n in range(6)))
    assert {response.status_code for response in responses} == {202}
    assert sorted(response.json()["version"] for response in responses) == [1, 2, 3, 4, 5, 6]


async def test_the_content_digest_is_checked(gateway, model):
    good = base64.b64encode(hashlib.sha256(b"model").digest()).decode()
    bad = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    mismatch = await upload(gateway, model, headers={"content-digest": f"sha-256=:{bad}:"})
    assert (mismatch.status_code, mismatch.json()["code"]) == (400, "digest_mismatch")
    unknown = await upload(gateway, model, headers={"content-digest": "md5=:AAAA:"})
    assert (unknown.status_code, unknown.json()["code"]) == (400, "invalid_input")
    matching = await upload(gateway, model, headers={"content-digest": f"sha-512=:AAAA:, sha-256=:{good}:"})
    assert (matching.status_code, matching.json()["version"]) == (202, 1)


async def test_refused_uploads(gateway, model):
    async def endless():
        while True:
            yield b"\0" * 65536

    for response, status in [
        (await upload(gateway, model, b"x" * (LIMIT_BYTES + 1)), 413),
        (await upload(gateway, model, b""), 400),
        (await upload(gateway, model, format="pickle"), 400),
        (await upload(gateway, model, version="0"), 400),
        (await upload(gateway, "-name"), 400),
        (await upload(gateway, "n" * 101), 400),
        (await gateway.client.get(f"{repository(model)}/versions"), 404),
    ]:
        assert response.status_code == status, response.text
        assert set(response.json()) == {"error", "code"}


async def test_an_upload_above_the_limit_is_told_while_it_streams(gateway, model):
    """The 413 arrives although the client is not done sending, and the connection closes behind it."""

    def talk():
        with socket.create_connection(("127.0.0.1", gateway.settings.gateway_port), timeout=20) as connection:
            path = f"{repository(model)}/versions"
            connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
            chunk = b"10000\r\n" + b"\0" * 65536 + b"\r\n"
            for _ in range(LIMIT_BYTES // 65536 + 1):
                connection.sendall(chunk)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(65536)
            for _ in range(20):
                connection.sendall(chunk)  # still taken: no reset before the answer was read
            connection.sendall(b"0\r\n\r\n")
            while piece := connection.recv(65536):
                answer += piece
            return answer

    answer = await asyncio.to_thread(talk)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert b'"code":"too_large"' in answer


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(gateway, model):
    def leave():
        with socket.create_connection(("127.0.0.1", gateway.settings.gateway_port), timeout=20) as connection:
            path = f"{repository(model)}/versions"
            connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf".encode())

    await asyncio.to_thread(leave)
    assert (await upload(gateway, model)).json()["version"] == 1


# ------------------------------------------------------------------ which version answers


async def test_a_ready_version_shows_what_was_measured(gateway, log, model):
    await upload(gateway, model)
    await log.make_ready(model, 1, echo_signature("FP32"))
    await gateway.until(f"/v2/models/{model}", lambda response: response.status_code == 200)
    state = (await gateway.client.get(f"{repository(model)}/versions/1")).json()
    assert (state["state"], state["chosen"], state["reason"], state["active"]) == (
        "ready",
        "fp32",
        "the only one",
        True,
    )
    assert state["variants"][0]["measurements"]["speedup"] == 1.0
    await upload(gateway, model)
    rejected = {"model": model, "version": 2, "attempt": 1, "owner": "optimizer/1"}
    await log.make_ready(model, 2, echo_signature("FP32"))
    await log.events(VariantRejected(**rejected, variant="int8", reason="too far from fp32"))  # too late: ignored
    whole = (await gateway.client.get(f"{repository(model)}/versions")).json()
    assert [version["version"] for version in whole["versions"]] == [2, 1]


async def test_ready_needs_a_live_worker_that_holds_it(gateway, log, model):
    await served(gateway, log, model)
    waiting = await gateway.client.get(f"/v2/models/{model}/ready")
    assert (waiting.status_code, waiting.json()["code"]) == (503, "not_ready")
    assert "no live worker holds version 1" in waiting.json()["error"]

    async def beating():  # each beat says that it lives, and no longer than a second or two
        await log.heartbeat((model, 1), interval_s=0.2)
        return (await gateway.client.get(f"/v2/models/{model}/ready")).status_code == 200

    await eventually(beating, within_s=30)
    await gateway.until(f"/v2/models/{model}/ready", lambda response: response.status_code == 503)


async def test_promote_and_roll_back(gateway, log, model):
    await served(gateway, log, model, versions=2)
    promoted = await gateway.client.post(f"{repository(model)}/versions/2/promote")
    assert (promoted.status_code, promoted.json()["active"], promoted.json()["previous"]) == (200, 2, [1])
    again = await gateway.client.post(f"{repository(model)}/versions/2/promote")
    assert (again.status_code, again.json()["active"]) == (200, 2)
    back = await gateway.client.post(f"{repository(model)}/rollback")
    assert (back.status_code, back.json()["active"]) == (200, 1)
    nothing = await gateway.client.post(f"{repository(model)}/rollback")
    assert (nothing.status_code, nothing.json()["code"]) == (409, "conflict")
    await upload(gateway, model)
    unready = await gateway.client.post(f"{repository(model)}/versions/3/promote")
    assert (unready.status_code, "only a ready version" in unready.json()["error"]) == (409, True)
    unknown = await gateway.client.post(f"{repository(model)}/versions/9/promote")
    assert unknown.status_code == 404


async def test_traffic_is_split_and_joined(gateway, log, model):
    await served(gateway, log, model, versions=2)
    url = f"{repository(model)}/traffic"
    split = await gateway.client.post(url, json={"weights": {"1": 90, "2": 10}})
    assert (split.status_code, split.json()["weights"]) == (200, {"1": 90, "2": 10})
    await log.heartbeat((model, 1))
    await gateway.until(f"/v2/models/{model}/ready", lambda half: "version 2" in half.json().get("error", ""))
    joined = await gateway.client.post(url, json={"weights": {}})
    assert (joined.status_code, joined.json()["weights"], joined.json()["active"]) == (200, {}, 1)
    for weights, status in [({"9": 1}, 404), ({"0": 1}, 400), ({"1": -1}, 400), ("x", 400)]:
        refused = await gateway.client.post(url, json={"weights": weights})
        assert refused.status_code == status, refused.text
    await upload(gateway, model)
    unready = await gateway.client.post(url, json={"weights": {"1": 1, "3": 1}})
    assert (unready.status_code, "[3]" in unready.json()["error"]) == (409, True)


async def test_retired_is_410_and_an_upload_brings_the_model_back(gateway, log, model):
    await served(gateway, log, model, versions=2)
    retired = await gateway.client.post(f"{repository(model)}/versions/1/retire")
    assert (retired.status_code, retired.json()["active"]) == (200, None)
    assert (await gateway.client.get(f"/v2/models/{model}/versions/1")).status_code == 410
    assert (await gateway.client.post(f"{repository(model)}/retire")).status_code == 200
    gone = await gateway.client.post(f"/v2/models/{model}/infer", json={"inputs": []})
    assert (gone.status_code, gone.json()["code"]) == (410, "model_retired")
    assert (await gateway.client.post(f"{repository(model)}/retire")).status_code == 200
    assert (await upload(gateway, model)).json()["version"] == 3
    assert (await gateway.client.post(f"{repository('nobody')}/retire")).status_code == 404
