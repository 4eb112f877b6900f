"""Every call of an unmodified `tritonclient[http]`, each tested for what it does here."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from services.gateway.settings import GatewaySettings
from shared.outcome_events import Duration, ModelStatistics, RunStatistics
from support.fleet import Fleet
from support.gateway import Gateway, echo_signature, example, worker, writer
from support.ports import free_port
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
SPENT = Duration(count=3, ns=30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(backbone):
    """A gateway, two versions of a model of which the second answers, and a fleet that obeys the registry."""
    settings = backbone.settings(GatewaySettings, gateway_port=free_port(), request_timeout_s=20, load_timeout_s=2)
    model = backbone.model()
    async with Gateway(settings) as gateway, writer(settings) as log, Fleet.of(settings, log) as fleet:
        await gateway.ready()
        for version in (1, 2):
            uploaded = await gateway.client.post(f"/v2/repository/models/{model}/versions", content=b"model")
            assert uploaded.status_code == 202, uploaded.text
            await log.make_ready(model, version, echo_signature("FP32", "BYTES", "INT64"))
        await gateway.until(f"/v2/models/{model}/versions/2", lambda response: response.status_code == 200)
        await gateway.client.post(f"/v2/repository/models/{model}/versions/2/promote")
        async with worker(settings, model) as running:
            await gateway.until(f"/v2/models/{model}/ready", lambda response: response.status_code == 200)
            yield Stack(gateway, model, log, running, fleet)


class Stack:
    def __init__(self, gateway, model, log, running, fleet):
        self.gateway = gateway
        self.model = model
        self.log = log
        self.worker = running
        self.fleet = fleet

    async def ask(self, call, *args, **options):
        """A method of a client of its own, off the event loop: the client may be used by one thread only."""

        def asked():
            with contextlib.closing(triton.InferenceServerClient(self.gateway.url.removeprefix("http://"))) as client:
                return getattr(client, call)(*args, **options)

        return await asyncio.to_thread(asked)

    async def refused(self, call, *args, **options):
        """Status and sentence of a call that must fail."""
        with pytest.raises(InferenceServerException) as raised:
            await self.ask(call, *args, **options)
        return raised.value.status(), raised.value.message()


def tensors(*, binary=(True, True, True)):
    """FP32, BYTES and INT64 inputs, each in binary or JSON."""
    given = []
    for datatype, in_binary in zip(("FP32", "BYTES", "INT64"), binary, strict=True):
        tensor = triton.InferInput(datatype, [2, 3], datatype)
        data = np.array([[b"a", b"", b"\xc3\xa9"], [b"d", b"e", b"f"]], object) if datatype == "BYTES" else None
        tensor.set_data_from_numpy(example(datatype) if data is None else data, binary_data=in_binary)
        given.append(tensor)
    return given


# ------------------------------------------------------------------ health and metadata


async def test_health(stack):
    assert await stack.ask("is_server_live")
    assert await stack.ask("is_server_ready")
    assert await stack.ask("is_model_ready", stack.model)
    assert await stack.ask("is_model_ready", stack.model, "1")
    assert not await stack.ask("is_model_ready", stack.model, "3")
    assert not await stack.ask("is_model_ready", "nobody")


async def test_server_metadata_lists_what_is_there(stack):
    assert await stack.ask("get_server_metadata") == {
        "name": "aiaas",
        "version": "0.1.0",
        "extensions": [
            "model_repository",
            "model_repository(unload_dependents)",
            "schedule_policy",
            "model_configuration",
            "binary_tensor_data",
            "parameters",
            "statistics",
        ],
    }


async def test_model_metadata_and_configuration_agree(stack):
    for version in ("", "1"):
        metadata = await stack.ask("get_model_metadata", stack.model, version)
        config = await stack.ask("get_model_config", stack.model, version)
        assert metadata["name"] == config["name"] == stack.model
        assert metadata["versions"] == ["1", "2"]
        assert config["max_batch_size"] == 8
        assert config["instance_group"] == [{"name": f"{stack.model}_cpu", "kind": "KIND_CPU", "count": 1}]
        for told, configured in zip(metadata["inputs"], config["input"], strict=True):
            assert told["name"] == configured["name"]
            assert told["shape"] == [-1, *configured["dims"]]
        assert [output["data_type"] for output in config["output"]] == ["TYPE_FP32", "TYPE_STRING", "TYPE_INT64"]
    for call in ("get_model_metadata", "get_model_config"):
        assert (await stack.refused(call, "nobody"))[0] == "404"
        assert (await stack.refused(call, stack.model, "9"))[0] == "404"


# ------------------------------------------------------------------ statistics


async def test_statistics_are_the_monitors(stack):
    counted = ModelStatistics(
        model=stack.model,
        version=1,
        last_inference_ms=1_700_000_000_000,
        inferences=6,
        success=SPENT,
        fail=Duration(count=1, ns=5),
        queue=SPENT,
        compute_input=SPENT,
        compute_infer=SPENT,
        compute_output=SPENT,
        runs=(RunStatistics(batch_size=2, compute_input=SPENT, compute_infer=SPENT, compute_output=SPENT),),
        offsets={0: 4},
    )
    await stack.log.statistics(counted)

    async def one():
        [row] = (await stack.ask("get_inference_statistics", stack.model, "1"))["model_stats"]
        return row if row["inference_count"] else None

    row = await eventually(one)
    assert (row["name"], row["version"]) == (stack.model, "1")
    assert (row["inference_count"], row["execution_count"]) == (6, 3)
    assert row["inference_stats"]["fail"] == {"count": 1, "ns": 5}
    assert row["batch_stats"][0]["batch_size"] == 2
    assert row["exact_at"] == {"0": 4}
    both = (await stack.ask("get_inference_statistics", stack.model))["model_stats"]
    assert [(each["version"], each["inference_count"]) for each in both] == [("1", 6), ("2", 0)]
    assert (await stack.ask("get_inference_statistics"))["model_stats"] == both
    assert (await stack.refused("get_inference_statistics", "nobody"))[0] == "404"
    assert (await stack.refused("get_inference_statistics", stack.model, "9"))[0] == "404"
    assert (await stack.refused("get_inference_statistics", stack.model, "one"))[0] == "404"


# ------------------------------------------------------------------ the repository


async def test_the_repository_index(stack):
    ready = [{"name": stack.model, "version": str(v), "state": "READY", "reason": ""} for v in (1, 2)]
    assert await stack.ask("get_model_repository_index") == ready
    await stack.gateway.client.post("/v2/repository/models/unborn/versions", content=b"model")
    assert [e["state"] for e in await stack.ask("get_model_repository_index")] == ["READY", "READY", "LOADING"]
    only = await stack.gateway.client.post("/v2/repository/index", json={"ready": True})
    assert only.json() == ready
    for body in (b"[]", b"{", b'{"ready": 1}'):
        bad = await stack.gateway.client.post("/v2/repository/index", content=body)
        assert (bad.status_code, bad.json()["code"]) == (400, "invalid_input")


async def test_unload_and_load(stack):
    await stack.ask("unload_model", stack.model, unload_dependents=True)
    assert not await stack.ask("is_model_ready", stack.model)
    index = {(e["name"], e["version"]): e for e in await stack.ask("get_model_repository_index")}
    assert index[stack.model, "2"]["state"] == "UNAVAILABLE"
    assert "unloaded" in index[stack.model, "2"]["reason"]
    status, sentence = await stack.refused("infer", stack.model, tensors())
    assert status == "503"
    assert f"/v2/repository/models/{stack.model}/load" in sentence
    told = await stack.gateway.client.post(f"/v2/models/{stack.model}/infer", json={"inputs": []})
    assert (told.json()["code"], "retry-after" in told.headers) == ("not_loaded", True)
    await stack.ask("unload_model", stack.model)  # again: nothing to do

    await stack.ask("load_model", stack.model)
    assert await stack.ask("is_model_ready", stack.model)
    assert (await stack.ask("infer", stack.model, tensors())).get_response()["model_name"] == stack.model
    await stack.ask("load_model", stack.model)
    shown = (await stack.gateway.client.get(f"/v2/repository/models/{stack.model}/versions")).json()
    assert (shown["unloaded"], shown["active"]) == (False, 2)


async def test_what_no_worker_says_in_time_is_told_as_unfinished(stack):
    for call, meanwhile in (("unload_model", "not yet told by ['worker-1']"), ("load_model", "not loaded yet")):
        stack.fleet.willing.clear()
        began_s = time.monotonic()
        status, sentence = await stack.refused(call, stack.model)
        assert (status, meanwhile in sentence) == ("503", True), sentence
        assert 1.5 < time.monotonic() - began_s < 30
        stack.fleet.willing.set()
        await stack.ask(call, stack.model)
    assert await stack.ask("is_model_ready", stack.model)


async def test_a_load_waits_for_the_worker(stack):
    await stack.ask("unload_model", stack.model)
    stack.fleet.willing.clear()
    loading = asyncio.create_task(stack.ask("load_model", stack.model))
    await asyncio.sleep(0.5)
    assert not loading.done()
    stack.fleet.willing.set()
    await loading
    assert await stack.ask("is_model_ready", stack.model)


async def test_loads_that_can_not_be(stack):
    files = {"file:1/model.onnx": b"bytes"}
    for options in ({"config": "{}"}, {"config": "{}", "files": files}):
        status, sentence = await stack.refused("load_model", stack.model, **options)
        assert status == "400"
        assert "upload" in sentence
    assert (await stack.refused("load_model", "nobody"))[0] == "404"
    assert (await stack.refused("unload_model", "nobody"))[0] == "404"
    strange = {"parameters": {"force": True}}
    assert (
        await stack.gateway.client.post(f"/v2/repository/models/{stack.model}/unload", json=strange)
    ).status_code == 400
    for parameters, status in ((None, 200), ({}, 200), ([], 400), (False, 400)):
        loaded = await stack.gateway.client.post(
            f"/v2/repository/models/{stack.model}/load", json={"parameters": parameters}
        )
        assert loaded.status_code == status, parameters
    await stack.gateway.client.post("/v2/repository/models/gone/versions", content=b"model")
    await stack.gateway.client.post("/v2/repository/models/gone/retire")
    assert (await stack.refused("load_model", "gone"))[0] == "410"


# ------------------------------------------------------------------ what is not here


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_shared_memory_is_never_registered(stack, kind):
    about = ("r", "/key", 64) if kind == "system" else ("r", b"handle", 0, 64)
    assert await stack.ask(f"get_{kind}_shared_memory_status") == []
    status, sentence = await stack.refused(f"register_{kind}_shared_memory", *about)
    assert (status, "not supported" in sentence) == ("400", True)
    assert (await stack.refused(f"get_{kind}_shared_memory_status", "r"))[0] == "404"
    await stack.ask(f"unregister_{kind}_shared_memory", "r")
    await stack.ask(f"unregister_{kind}_shared_memory")
    assert await stack.ask(f"get_{kind}_shared_memory_status") == []


async def test_a_tensor_in_shared_memory_is_refused(stack):
    given = tensors()
    given[0].set_shared_memory("r", 24)
    assert (await stack.refused("infer", stack.model, given))[0] == "400"
    wanted = triton.InferRequestedOutput("FP32")
    wanted.set_shared_memory("r", 24)
    status, sentence = await stack.refused("infer", stack.model, tensors(), outputs=[wanted])
    assert (status, "shared_memory_region" in sentence) == ("400", True)


async def test_classification_is_refused_and_not_ignored(stack):
    wanted = triton.InferRequestedOutput("FP32", class_count=2)
    status, sentence = await stack.refused("infer", stack.model, tensors(), outputs=[wanted])
    assert (status, "classification" in sentence) == ("400", True)


async def test_traces_and_logs_tell_what_is_and_do_not_change(stack):
    assert await stack.ask("get_trace_settings") == {"trace_level": ["OFF"]}
    assert await stack.ask("get_trace_settings", stack.model) == {"trace_level": ["OFF"]}
    assert (await stack.refused("get_trace_settings", "nobody"))[0] == "404"
    settings = {"trace_level": ["TIMESTAMPS"]}
    assert (await stack.refused("update_trace_settings", settings=settings))[0] == "400"
    assert (await stack.refused("update_trace_settings", stack.model, settings))[0] == "400"
    assert (await stack.refused("update_trace_settings", "nobody", settings))[0] == "404"
    logs = await stack.ask("get_log_settings")
    assert (logs["log_error"], logs["log_file"], logs["log_format"]) == (True, "", "ISO8601")
    assert (await stack.refused("update_log_settings", {"log_verbose_level": 1}))[0] == "400"
    assert await stack.ask("get_log_settings") == logs


# ------------------------------------------------------------------ inference


@pytest.mark.parametrize("binary_in", [(True, True, True), (False, False, False), (True, False, True)])
@pytest.mark.parametrize(
    "wanted", [None, {"FP32": True, "BYTES": True, "INT64": True}, {"INT64": False, "BYTES": True}]
)
async def test_infer_in_every_combination(stack, binary_in, wanted):
    outputs = wanted and [triton.InferRequestedOutput(name, binary_data=b) for name, b in wanted.items()]
    result = await stack.ask("infer", stack.model, tensors(binary=binary_in), outputs=outputs, request_id="mine")
    response = result.get_response()
    assert (response["id"], response["model_name"]) == ("mine", stack.model)
    assert {output["name"] for output in response["outputs"]} == set(wanted or ("FP32", "BYTES", "INT64"))
    for output in response["outputs"]:
        in_binary = True if wanted is None else wanted[output["name"]]
        assert ("data" in output, "binary_data_size" in output.get("parameters", {})) == (not in_binary, in_binary)
        if output["name"] != "BYTES":
            assert np.array_equal(result.as_numpy(output["name"]), example(output["name"]))
    if wanted is None or "BYTES" in wanted:
        assert result.as_numpy("BYTES")[0, 2] == b"\xc3\xa9"


async def test_infer_without_an_id_and_of_a_version(stack):
    response = (await stack.ask("infer", stack.model, tensors(), model_version="1")).get_response()
    assert "id" not in response
    assert response["model_version"] == "1"
    assert (await stack.refused("infer", stack.model, tensors(), model_version="9"))[0] == "404"


async def test_parameters_travel_with_the_request(stack):
    parameters, timeout_s, began_s = {"colour": "blue", "n": 3}, 50, time.time()
    about = {"request_id": "travels", "priority": 1, "timeout": timeout_s * 1_000_000, "parameters": parameters}
    await stack.ask("infer", stack.model, tensors(), **about)
    headers, request = await stack.worker.record_of("travels")
    assert request.parameters["colour"] == "blue"
    assert request.parameters["n"] == 3
    assert request.parameters["priority"] == 1
    assert began_s - 0.001 <= headers.deadline_ms / 1000 - timeout_s <= time.time()
    status, _ = await stack.refused(
        "infer", stack.model, tensors(), timeout=200_000, parameters={"behaviour": "silent"}
    )
    assert status == "504"


async def test_async_infer_from_many_at_once(stack):
    def ask():
        client = triton.InferenceServerClient(stack.gateway.url.removeprefix("http://"), concurrency=8)
        pending = [client.async_infer(stack.model, tensors(), request_id=f"r{n}") for n in range(20)]
        ids = [request.get_result(timeout=20).get_response()["id"] for request in pending]
        client.close()
        return ids

    result, failure = [], []

    def run():
        try:
            result.extend(ask())
        except BaseException as err:  # noqa: BLE001 - a thread of its own: gevent keeps a hub for each
            failure.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(thread.join, 40)
    assert not failure
    assert result == [f"r{n}" for n in range(20)]


async def test_bodies_made_and_read_without_a_client(stack):
    body, length = triton.InferenceServerClient.generate_request_body(tensors(), request_id="by hand")
    headers = {"Inference-Header-Content-Length": str(length)} if length else {}
    response = await stack.gateway.client.post(f"/v2/models/{stack.model}/infer", content=bytes(body), headers=headers)
    result = triton.InferenceServerClient.parse_response_body(
        response.content, header_length=int(response.headers["Inference-Header-Content-Length"])
    )
    assert result.get_response()["id"] == "by hand"
    assert np.array_equal(result.as_numpy("INT64"), example("INT64"))


async def test_the_asyncio_client(stack):
    async with triton_aio.InferenceServerClient(stack.gateway.url.removeprefix("http://")) as client:
        assert await client.is_model_ready(stack.model)
        assert "statistics" in (await client.get_server_metadata())["extensions"]
        assert (await client.get_model_config(stack.model))["name"] == stack.model
        assert {entry["name"] for entry in await client.get_model_repository_index()} >= {stack.model}
        assert (await client.get_inference_statistics(stack.model))["model_stats"]
        await client.unload_model(stack.model)
        await client.load_model(stack.model)
        result = await client.infer(stack.model, tensors())
        assert np.array_equal(result.as_numpy("INT64"), example("INT64"))
