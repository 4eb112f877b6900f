"""Inference through a real gateway: real HTTP, Kafka and Redis; the worker is a few lines of `support.gateway`."""

from __future__ import annotations

import asyncio
import uuid

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from services.gateway.settings import GatewaySettings
from shared.replies import Claim, connect
from shared.tensors import DTYPES
from support.gateway import (
    Gateway,
    a_client_that_leaves,
    echo_signature,
    example,
    json_input,
    tensor,
    worker,
    writer,
)
from support.ports import free_port
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
DATATYPES = tuple(DTYPES)
TRITON_DATATYPES = tuple(d for d in DATATYPES if d != "BF16")
PLACES = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(backbone):
    """A gateway, a served model and its worker."""
    settings = backbone.settings(
        GatewaySettings,
        gateway_port=free_port(),
        max_in_flight_per_model=PLACES,
        request_timeout_s=60,
        max_body_bytes=2**21,
        request_partitions=1,  # what is behind a record in the log is seen after it
    )
    model = backbone.model()
    async with Gateway(settings) as gateway, writer(settings) as log:
        await gateway.ready()
        uploaded = await gateway.client.post(f"/v2/repository/models/{model}/versions", content=b"model")
        assert uploaded.status_code == 202, uploaded.text
        await log.make_ready(model, 1, echo_signature(*DATATYPES))
        await gateway.until(f"/v2/models/{model}", lambda response: response.status_code == 200)
        await log.heartbeat((model, 1))
        async with worker(settings, model) as running:
            await gateway.until(f"/v2/models/{model}/ready", lambda response: response.status_code == 200)
            yield Stack(gateway, settings, model, log, running)


class Stack:
    def __init__(self, gateway, settings, model, log, running):
        self.gateway = gateway
        self.settings = settings
        self.model = model
        self.log = log
        self.worker = running

    @property
    def client(self):
        return self.gateway.client

    async def infer(self, *, headers=None, client=None, path="", **fields):
        body = {"inputs": ALL_INPUTS, **fields}
        return await (client or self.client).post(f"/v2/models/{self.model}{path}/infer", json=body, headers=headers)

    async def enqueued(self):
        """How many requests were ever appended: the worker has seen one that is behind all of them."""
        assert (await self.infer()).status_code == 200
        return len(self.worker.records)


ALL_INPUTS = [json_input(datatype) for datatype in DATATYPES]


# ------------------------------------------------------------------ an unmodified Triton client


async def test_triton_client_sees_a_server_and_a_model(stack):
    def ask():
        client = triton.InferenceServerClient(stack.gateway.url.removeprefix("http://"))
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(stack.model)
        assert client.is_model_ready(stack.model, "1")
        assert not client.is_model_ready(stack.model, "2")
        server, model = client.get_server_metadata(), client.get_model_metadata(stack.model)
        client.close()
        return server, model

    server, model = await asyncio.to_thread(ask)
    assert (server["name"], server["version"]) == ("aiaas", "0.1.0")
    assert "binary_tensor_data" in server["extensions"]
    assert (model["name"], model["versions"], model["platform"]) == (stack.model, ["1"], "onnx")
    assert model["inputs"] == model["outputs"]
    assert model["inputs"][0] == {"name": "BOOL", "datatype": "BOOL", "shape": [-1, 3]}


@pytest.mark.parametrize("binary", [False, True])
async def test_triton_client_infers_every_datatype(stack, binary):
    def ask():
        client = triton.InferenceServerClient(stack.gateway.url.removeprefix("http://"))
        inputs = []
        for datatype in TRITON_DATATYPES:
            given = triton.InferInput(datatype, [2, 3], datatype)
            # Triton's client refuses FP16 in JSON: that stays binary.
            given.set_data_from_numpy(example(datatype), binary_data=binary or datatype == "FP16")
            inputs.append(given)
        bf16 = triton.InferInput("BF16", [2, 3], "BF16")
        bf16._raw_data = example("BF16").tobytes()  # its numpy way needs FP32 values; the bits are what travels
        bf16._parameters["binary_data_size"] = 12
        outputs = [triton.InferRequestedOutput(d, binary_data=binary or d == "BF16") for d in DATATYPES]
        result = client.infer(stack.model, [*inputs, bf16], outputs=outputs, request_id="mine")
        client.close()
        return result

    result = await asyncio.to_thread(ask)
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["model_version"] == "1"
    for datatype in TRITON_DATATYPES:
        got = result.as_numpy(datatype)
        if datatype == "BYTES" and not binary:
            got = np.array([[e.encode() for e in row] for row in got], dtype=object)
        assert np.array_equal(got, example(datatype)), datatype


async def test_triton_client_raises_our_sentence(stack):
    def ask(model):
        client = triton.InferenceServerClient(stack.gateway.url.removeprefix("http://"))
        given = triton.InferInput("FP32", [2, 3], "FP32")
        given.set_data_from_numpy(example("FP32"))
        try:
            client.infer(model, [given])
        finally:
            client.close()

    with pytest.raises(InferenceServerException, match="is missing"):
        await asyncio.to_thread(ask, stack.model)
    with pytest.raises(InferenceServerException, match="'nobody' is not known"):
        await asyncio.to_thread(ask, "nobody")


# ------------------------------------------------------------------ answers and what is enqueued


async def test_json_in_json_out(stack):
    response = await stack.infer(id="mine", outputs=[{"name": "INT64"}, {"name": "BYTES"}])
    assert response.status_code == 200, response.text
    assert uuid.UUID(response.headers["x-request-id"]).version == 4
    assert response.json() == {
        "model_name": stack.model,
        "model_version": "1",
        "id": "mine",
        "outputs": [
            {"name": "INT64", "datatype": "INT64", "shape": [2, 3], "data": [0, 1, 1, 1, 0, 1]},
            {"name": "BYTES", "datatype": "BYTES", "shape": [2, 3], "data": ["a", "", "é", "d", "e", "\x00"]},
        ],
    }


async def test_one_output_in_binary_beside_json(stack):
    outputs = [{"name": "INT64", "parameters": {"binary_data": True}}, {"name": "BOOL"}]
    response = await stack.infer(outputs=outputs)
    header = int(response.headers["inference-header-content-length"])
    assert response.content[header:] == example("INT64").tobytes()
    assert response.headers["content-type"] == "application/octet-stream"


async def test_the_record_carries_the_contract(stack):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = await stack.infer(
        path="/versions/1", headers={"traceparent": trace}, parameters={"timeout": 50_000_000, "tag": "x"}
    )
    request_id = response.headers["x-request-id"]
    headers, request = next(seen for seen in stack.worker.records if seen[0].request_id == request_id)
    assert (headers.content_type, headers.traceparent) == ("application/msgpack", trace)
    assert (headers.model_version, headers.reply_channel) == (1, stack.settings.instance)
    assert headers.registry_offset >= 3
    assert headers.deadline_ms is not None
    assert request.parameters["tag"] == "x"
    assert [bytes(t.data) for t in request.inputs] == [bytes(tensor(d).data) for d in DATATYPES]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not a JSON document"),
        (b"{", "not a JSON document"),
        (b"[]", "must be a map"),
        (b'{"inputs": []}', "is missing"),
        (b'{"inputs": [{"name": "X", "datatype": "FP32", "shape": [1], "data": [1]}]}', "unknown input"),
    ],
)
async def test_bad_requests_are_400_and_never_enqueued(stack, body, sentence):
    before = await stack.enqueued()
    response = await stack.client.post(f"/v2/models/{stack.model}/infer", content=body)
    assert response.status_code == 400
    assert response.json()["code"] == "invalid_input"
    assert sentence in response.json()["error"]
    assert await stack.enqueued() == before + 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": [2, 4], "data": [0] * 8}, "expected ['rows', 3]"),
        ({"datatype": "INT32"}, "expected INT64"),
        ({"data": [1, 2]}, "has 2 elements"),
        ({"data": [0.5] * 6}, "elements of type float"),
    ],
)
async def test_what_the_signature_forbids_is_400(stack, change, sentence):
    inputs = [given | change if given["name"] == "INT64" else given for given in ALL_INPUTS]
    response = await stack.infer(inputs=inputs)
    assert response.status_code == 400, response.text
    assert sentence in response.json()["error"]


async def test_other_refusals(stack):
    unknown_output = await stack.infer(outputs=[{"name": "nope"}])
    bad_timeout = await stack.infer(parameters={"timeout": -1})
    mislabelled = await stack.infer(headers={"content-encoding": "gzip"})
    assert [r.status_code for r in (unknown_output, bad_timeout, mislabelled)] == [400, 400, 400]
    for path, code in [
        (f"/v2/models/{stack.model}/versions/7/infer", "unknown_version"),
        (f"/v2/models/{stack.model}/versions/x/infer", "unknown_version"),
        ("/v2/models/nobody/infer", "unknown_model"),
        ("/v2/nothing", "not_found"),
    ]:
        response = await stack.client.post(path, content=b"{}")
        assert (response.status_code, response.json()["code"]) == (404, code), path
    get = await stack.client.get(f"/v2/models/{stack.model}/infer")
    assert (get.status_code, get.json()["code"]) == (405, "method_not_allowed")


async def test_too_large_a_body_and_too_large_a_record(stack):
    body = await stack.client.post(f"/v2/models/{stack.model}/infer", content=b" " * (2**21 + 1))
    assert (body.status_code, body.json()["code"]) == (413, "too_large")
    record = await stack.infer(parameters={"note": "n" * 1_000_000})  # tensors would go to the store, this can't
    assert (record.status_code, record.json()["code"]) == (413, "too_large")
    assert "above the limit of 1000000" in record.json()["error"]


async def test_a_failed_run_is_500_with_its_code(stack):
    response = await stack.infer(parameters={"behaviour": "fail"})
    assert (response.status_code, response.json()) == (500, {"error": "the model raised", "code": "execution_failed"})
    assert response.headers["x-request-id"]


async def test_a_version_named_answers_and_says_so(stack):
    response = await stack.infer(path="/versions/1")
    assert (response.status_code, response.json()["model_version"]) == (200, "1")


# ------------------------------------------------------------------ deadlines, bounds, broken clients


async def test_the_deadline_ends_the_wait_with_504_and_one_outcome(stack):
    response = await stack.infer(parameters={"behaviour": "silent", "timeout": 300_000})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    request_id = response.headers["x-request-id"]
    state = (await stack.client.get(f"/v2/models/{stack.model}/requests/{request_id}")).json()
    assert (state["state"], state["error"]["code"]) == ("expired", "deadline_exceeded")


async def test_more_than_fits_is_503_at_once(stack):
    with stack.worker.holding():
        held = [
            asyncio.create_task(stack.infer(id=f"held-{number}", parameters={"behaviour": "held"}))
            for number in range(PLACES)
        ]
        for number in range(PLACES):
            await stack.worker.record_of(f"held-{number}")
        response = await stack.infer()
        assert (response.status_code, response.json()["code"]) == (503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
    assert {r.status_code for r in await asyncio.gather(*held)} == {200}
    assert (await stack.infer()).status_code == 200


async def test_a_client_that_leaves_frees_its_place(stack):
    async def answered():
        return (await stack.infer()).status_code == 200

    for number in range(PLACES + 2):  # with as many as there are places gone, nobody would be answered
        fields = {"id": f"leaves-{number}", "parameters": {"behaviour": "silent"}}
        await a_client_that_leaves(
            stack.gateway.url,
            lambda client, fields=fields: stack.infer(client=client, **fields),
            stack.worker.record_of(fields["id"]),
        )
        await eventually(answered, within_s=30)


# ------------------------------------------------------------------ respond-async


async def test_async_is_202_then_polled_by_any_gateway(stack, backbone):
    with stack.worker.holding():
        accepted = await stack.infer(
            headers={"prefer": "respond-async"}, parameters={"behaviour": "held"}, outputs=[{"name": "INT8"}]
        )
        assert accepted.status_code == 202
        body = accepted.json()
        assert accepted.headers["preference-applied"] == "respond-async"
        assert accepted.headers["location"] == body["status_url"]
        assert (body["id"], body["state"]) == (accepted.headers["x-request-id"], "queued")
        queued = (await stack.client.get(body["status_url"])).json()
        assert (queued["state"], queued["result"], queued["queue_position"]) == ("queued", None, None)

    other = backbone.settings(GatewaySettings, gateway_port=free_port(), topic_prefix=stack.settings.topic_prefix)
    async with Gateway(other) as second:
        await second.ready()
        done = await second.until(body["status_url"], lambda response: response.json()["state"] != "queued")
    assert done.json()["state"] == done.json()["status"] == "succeeded"
    assert done.json()["result"]["outputs"][0]["data"] == [0, 1, 1, 1, 0, 1]
    late = await stack.client.delete(body["status_url"])
    assert (late.status_code, late.json()["code"]) == (409, "conflict")


async def test_async_is_cancelled_once_and_for_all(stack):
    accepted = await stack.infer(headers={"prefer": "respond-async"}, parameters={"behaviour": "silent"})
    url = accepted.json()["status_url"]
    for _ in range(2):
        cancelled = await stack.client.delete(url)
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert (await stack.client.get(url)).json()["error"]["code"] == "cancelled"


async def test_a_cancel_ends_the_wait_of_a_caller(stack):
    waiting = asyncio.create_task(stack.infer(id="is cancelled", parameters={"behaviour": "silent"}))
    headers, _ = await stack.worker.record_of("is cancelled")
    request_id = headers.request_id
    async with connect(stack.settings) as replies:  # what a worker writes when it meets a record
        await replies.claim(stack.model, request_id, Claim("t", 0, 0, None, ""))
    assert (await stack.client.delete(f"/v2/models/{stack.model}/requests/{request_id}")).status_code == 200
    response = await waiting
    assert (response.status_code, response.json()["code"]) == (409, "cancelled")


async def test_an_unknown_request_is_404(stack):
    for method in ("GET", "DELETE"):
        response = await stack.client.request(method, f"/v2/models/{stack.model}/requests/nope")
        assert (response.status_code, response.json()["code"]) == (404, "unknown_request")


async def test_openapi_describes_the_raw_routes(stack):
    document = (await stack.client.get("/openapi.json")).json()
    assert (await stack.client.get("/docs")).status_code == 200
    assert "requestBody" in document["paths"]["/v2/models/{model}/infer"]["post"]
    assert "requestBody" in document["paths"]["/v2/repository/models/{model}/versions"]["post"]
    assert "/v2/repository/models/{model}/versions/{version}/promote" in document["paths"]
