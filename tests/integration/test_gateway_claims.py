"""Large tensors through a real gateway: to the artifact store as they arrive, from it into the answer.

The worker of `support.gateway` echoes: what came as a claim check goes back as one, its bytes untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import orjson
import pytest
import pytest_asyncio
import tritonclient.http as triton

from services.gateway.settings import GatewaySettings
from shared.signature import Signature, TensorSpec
from shared.topics import MAX_RECORD_BYTES
from support.gateway import Gateway, worker, writer
from support.ports import free_port
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
ROWS = 1_200_000  # of three FP32: 14.4 MB, three parts
LIMIT = 20_000_000
SPECS = tuple(TensorSpec(name=datatype, datatype=datatype, shape=(-1, 3)) for datatype in ("FP32", "UINT8"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(backbone):
    settings = backbone.settings(
        GatewaySettings,
        gateway_port=free_port(),
        request_timeout_s=20,
        max_body_bytes=4_000_000,
        max_binary_body_bytes=LIMIT,
        max_bodies_bytes=40_000_000,  # two bodies on their way to the store
        max_json_output_bytes=2_000_000,
    )
    model = backbone.model()
    async with Gateway(settings) as gateway, writer(settings) as log:
        await gateway.ready()
        await gateway.client.post(f"/v2/repository/models/{model}/versions", content=b"model")
        await log.make_ready(model, 1, Signature(inputs=SPECS, outputs=SPECS))
        await gateway.until(f"/v2/models/{model}", lambda response: response.status_code == 200)
        await log.heartbeat((model, 1))
        async with worker(settings, model) as running:
            await gateway.until(f"/v2/models/{model}/ready", lambda response: response.status_code == 200)
            yield Stack(gateway, settings, model, running)


class Stack:
    def __init__(self, gateway, settings, model, running):
        self.gateway = gateway
        self.settings = settings
        self.model = model
        self.worker = running
        self.store = Path(urlsplit(settings.artifact_store_url).path)

    @property
    def url(self):
        return f"/v2/models/{self.model}/infer"

    async def post(self, header, tail=b"", **headers):
        text = orjson.dumps(header)
        headers |= {"inference-header-content-length": str(len(text))}
        return await self.gateway.client.post(self.url, content=text + tail, headers=headers)

    @contextlib.asynccontextmanager
    async def begun(self, inputs, tail_bytes):
        """A connection on which the header of a request was sent, and nothing of its tensors."""
        header = orjson.dumps({"inputs": inputs})
        reader, out = await asyncio.open_connection("127.0.0.1", self.settings.gateway_port)
        head = (
            f"POST {self.url} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(header) + tail_bytes}\r\n"
            f"inference-header-content-length: {len(header)}\r\n\r\n"
        )
        out.write(head.encode() + header)
        await out.drain()
        try:
            yield reader, out
        finally:
            out.close()

    def path(self, artifact):
        return self.store / "sha256" / artifact["sha256"][:2] / artifact["sha256"][2:]

    def files(self):
        """All that is in the store or on its way there."""
        return {path for path in self.store.rglob("*") if path.is_file()}

    def stored(self, content):
        """Put content into the store; its claim check."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.store / "sha256" / sha256[:2] / sha256[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        uri = f"{self.settings.artifact_store_url}/sha256/{sha256[:2]}/{sha256[2:]}"
        return {"uri": uri, "sha256": sha256, "byte_size": len(content)}

    async def last_record(self):
        """The last record that the worker saw."""
        return self.worker.records[-1]


def rows(count, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (count, 3)).astype(dtype)


SMALL = {"name": "UINT8", "datatype": "UINT8", "shape": [1, 3], "data": [1, 2, 3]}


def binary(name, array, **more):
    parameters = {"binary_data_size": array.nbytes}
    return {"name": name, "datatype": name, "shape": list(array.shape), "parameters": parameters, **more}


def ask(stack, large, small, *, binary_small=True):
    """What an unmodified Triton client gets back."""
    client = triton.InferenceServerClient(stack.gateway.url.removeprefix("http://"), network_timeout=60)
    inputs = [
        triton.InferInput("FP32", list(large.shape), "FP32").set_data_from_numpy(large),
        triton.InferInput("UINT8", list(small.shape), "UINT8").set_data_from_numpy(small, binary_data=binary_small),
    ]
    try:
        result = client.infer(stack.model, inputs)
        return result.as_numpy("FP32"), result.as_numpy("UINT8")
    finally:
        client.close()


@pytest.mark.parametrize("binary_small", [True, False])
async def test_triton_client_sends_and_gets_a_tensor_that_no_record_could_carry(stack, binary_small):
    large, small = rows(ROWS), rows(1, np.uint8)
    back = await asyncio.to_thread(ask, stack, large, small, binary_small=binary_small)
    np.testing.assert_array_equal(back[0], large)
    np.testing.assert_array_equal(back[1], small)
    _, request = await stack.last_record()
    given = {tensor.name: tensor for tensor in request.inputs}
    assert given["FP32"].claimed
    assert given["FP32"].artifact.sha256 == hashlib.sha256(large).hexdigest()
    assert given["FP32"].size_bytes == large.nbytes
    assert bytes(given["UINT8"].data) == small.tobytes()  # small ones travel in the record
    assert max(stack.worker.value_bytes) < MAX_RECORD_BYTES


async def test_the_largest_go_first_and_only_as_many_as_must(stack):
    large, small = rows(60_000), rows(150_000, np.uint8)  # 720 kB and 450 kB: one of them is enough
    back = await asyncio.to_thread(ask, stack, large, small)
    np.testing.assert_array_equal(back[0], large)
    np.testing.assert_array_equal(back[1], small)
    _, request = await stack.last_record()
    assert {tensor.name: tensor.claimed for tensor in request.inputs} == {"FP32": True, "UINT8": False}


async def test_a_body_of_unknown_length(stack):
    large = rows(ROWS)
    header = orjson.dumps({"inputs": [binary("FP32", large), SMALL]})

    async def pieces():
        body = header + large.tobytes()
        for start in range(0, len(body), 1_234_567):
            yield body[start : start + 1_234_567]

    headers = {"inference-header-content-length": str(len(header))}
    answer = await stack.gateway.client.post(stack.url, content=pieces(), headers=headers)
    assert answer.status_code == 413  # in JSON, as nobody asked for binary
    _, request = await stack.last_record()
    assert request.inputs[0].artifact.sha256 == hashlib.sha256(large).hexdigest()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_body(stack, encoding):
    large = rows(ROWS)
    header = orjson.dumps({"inputs": [binary("FP32", large), SMALL]})
    packed = zlib.compress(header + large.tobytes(), 1, 31 if encoding == "gzip" else 15)
    headers = {"inference-header-content-length": str(len(header)), "content-encoding": encoding}
    await stack.gateway.client.post(stack.url, content=packed, headers=headers)
    _, request = await stack.last_record()
    assert request.inputs[0].artifact.sha256 == hashlib.sha256(large).hexdigest()


async def test_large_json_moves_to_the_store_and_comes_back_in_json(stack):
    large = rows(100_000)
    inputs = [{"name": "FP32", "datatype": "FP32", "shape": [100_000, 3], "data": large.ravel().tolist()}, SMALL]
    answer = await stack.gateway.client.post(stack.url, json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == large.ravel().tolist()
    _, request = await stack.last_record()
    assert request.inputs[0].claimed


async def test_json_beyond_its_bound_says_what_to_do(stack):
    large = rows(200_000)
    answer = await stack.post({"inputs": [binary("FP32", large), SMALL]}, large.tobytes())
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "ask for them in binary" in answer.json()["error"]
    url = f"/v2/models/{stack.model}/requests/{answer.headers['x-request-id']}"
    state = (await stack.gateway.client.get(url)).json()
    assert state["state"] == "succeeded"
    [output, small] = state["result"]["outputs"]
    assert "data" not in output
    assert output["parameters"]["sha256"] == hashlib.sha256(large).hexdigest()
    assert output["parameters"]["byte_size"] == large.nbytes
    assert small["data"] == [1, 2, 3]


async def test_an_answer_in_json_and_binary_mixed(stack):
    large, small = rows(100_000), rows(1, np.uint8)
    outputs = [{"name": "FP32"}, {"name": "UINT8", "parameters": {"binary_data": True}}]
    header = {"inputs": [binary("FP32", large), binary("UINT8", small)], "outputs": outputs}
    answer = await stack.post(header, large.tobytes() + small.tobytes())
    length = int(answer.headers["inference-header-content-length"])
    [spelt_out, _] = orjson.loads(answer.content[:length])["outputs"]
    assert spelt_out["data"] == large.ravel().tolist()
    assert answer.content[length:] == small.tobytes()


async def test_who_wants_an_output_in_the_store_gets_its_claim_check(stack):
    large = rows(ROWS)
    asks = {"parameters": {"binary_data_output": True, "store_outputs": True}}
    answer = await stack.post({"inputs": [binary("FP32", large), SMALL], **asks}, large.tobytes())
    length = int(answer.headers["inference-header-content-length"])
    assert len(answer.content) == length + 3  # the small one alone
    [output, _] = orjson.loads(answer.content[:length])["outputs"]
    assert set(output) == {"name", "datatype", "shape", "parameters"}
    assert stack.path(output["parameters"]).read_bytes() == large.tobytes()


# ------------------------------------------------------------------ the caller's own claim checks


async def test_a_claim_check_over_http(stack):
    large = rows(ROWS, seed=1)
    claim = stack.stored(large.tobytes())
    tensor = {"name": "FP32", "datatype": "FP32", "shape": list(large.shape), "data": claim}
    body = {"inputs": [tensor, SMALL], "parameters": {"binary_data_output": True}}
    answer = await stack.gateway.client.post(stack.url, json=body)
    length = int(answer.headers["inference-header-content-length"])
    assert answer.content[length : length + large.nbytes] == large.tobytes()


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"uri": "file:///etc/passwd"}, 400, "invalid_input"),
        ({"uri": "http://169.254.169.254/latest"}, 400, "invalid_input"),
        ({"byte_size": 11}, 400, "invalid_input"),
        ({"sha256": "x"}, 400, "invalid_input"),
        ({"sha256": None}, 400, "invalid_input"),
    ],
)
async def test_a_claim_check_that_is_wrong_is_refused_before_it_is_enqueued(stack, change, status, code):
    claim = stack.stored(rows(1).tobytes()) | change
    tensor = {"name": "FP32", "datatype": "FP32", "shape": [1, 3], "data": claim}
    seen = len(stack.worker.records)
    answer = await stack.gateway.client.post(stack.url, json={"inputs": [tensor, SMALL]})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert len(stack.worker.records) == seen


async def test_claim_checks_beyond_the_bound_are_too_large(stack):
    claim = stack.stored(b"") | {"byte_size": 12 * 2**40}
    tensor = {"name": "FP32", "datatype": "FP32", "shape": [2**40, 3], "data": claim}
    answer = await stack.gateway.client.post(stack.url, json={"inputs": [tensor, SMALL]})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


# ------------------------------------------------------------------ bodies that are wrong or break off


@pytest.mark.parametrize("tail", [-1, 1])
async def test_tails_of_another_length_are_refused_and_leave_nothing(stack, tail):
    large, before = rows(ROWS, seed=2), stack.files()
    body = large.tobytes()[:tail] if tail < 0 else large.tobytes() + b"!"
    answer = await stack.post({"inputs": [binary("FP32", large), SMALL]}, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    if tail < 0:
        assert stack.files() == before


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ([{"name": "FP32", "datatype": "FP32", "shape": [9, 3], "parameters": {"binary_data_size": 10_000_000}}], 400),
        ([binary("FP32", rows(800_000)) | {"shape": [800_000 * 3]}, SMALL], 400),
        ([binary("unknown", rows(800_000)) | {"datatype": "FP32"}, SMALL], 400),
        ([binary("FP32", rows(ROWS)), binary("UINT8", rows(2_000_000, np.uint8))], 413),
        ([], 400),
    ],
)
async def test_what_the_header_says_is_looked_at_before_the_tensors(stack, inputs, code):
    """Nothing of the tail is sent: an answer shows that nobody waited for it."""
    before = stack.files()
    async with stack.begun(inputs, LIMIT - 10_000) as (reader, _):
        async with asyncio.timeout(4):
            status = await reader.readline()
    assert status.split()[1] == str(code).encode()
    assert stack.files() == before


async def test_a_client_that_goes_away_leaves_nothing(stack):
    large, before = rows(ROWS, seed=3), stack.files()
    async with stack.begun([binary("FP32", large), SMALL], large.nbytes) as (_, out):
        out.write(large.tobytes()[:-1])
        await out.drain()

    async def look():
        return stack.files() == before

    await eventually(look, within_s=10, what="nothing left of a body that broke off")


async def test_a_store_that_is_away_is_503(stack):
    large, incoming = rows(ROWS), stack.store / "incoming"
    incoming.rename(incoming.with_name("moved"))
    incoming.write_bytes(b"a file where a directory belongs")
    try:
        answer = await stack.post({"inputs": [binary("FP32", large), SMALL]}, large.tobytes())
    finally:
        incoming.unlink()
        incoming.with_name("moved").rename(incoming)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert answer.headers["retry-after"]


async def test_too_many_bytes_in_flight_are_503(stack):
    large = rows(ROWS)
    inputs = [binary("FP32", large), SMALL]
    async with stack.begun(inputs, large.nbytes), stack.begun(inputs, large.nbytes):

        async def look():
            answer = await stack.post({"inputs": inputs}, large.tobytes())
            return answer.status_code == 503 and answer.json()["code"] == "overloaded"

        await eventually(look, within_s=10, what="a third body that is refused")


@pytest.mark.parametrize("length", ["0", "4000001", "x", "-1"])
async def test_header_lengths_that_are_none(stack, length):
    headers = {"inference-header-content-length": length}
    answer = await stack.gateway.client.post(stack.url, content=b"{}" * 500_000, headers=headers)
    assert (answer.status_code, answer.json()["code"]) in {(400, "invalid_input"), (413, "too_large")}


# ------------------------------------------------------------------ outputs that the store has lost or changed


def claimed_input(stack, count, seed):
    """A claim check that the worker echoes, and the file behind it."""
    large = rows(count, seed=seed)
    claim = stack.stored(large.tobytes())
    tensor = {"name": "FP32", "datatype": "FP32", "shape": list(large.shape), "data": claim}
    return {"inputs": [tensor, SMALL], "parameters": {"binary_data_output": True}}, stack.path(claim)


async def test_an_output_that_is_gone_is_an_error(stack):
    body, path = claimed_input(stack, 300_000, seed=4)
    path.unlink()
    answer = await stack.gateway.client.post(stack.url, json=body)
    assert (answer.status_code, answer.json()["code"]) == (500, "artifact_not_found")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("wants_json", [True, False])
async def test_a_short_output_that_was_altered_is_an_error(stack, wants_json):
    body, path = claimed_input(stack, 100_000, seed=5)
    path.write_bytes(bytes(path.stat().st_size))
    if wants_json:
        body["parameters"] = {}
    answer = await stack.gateway.client.post(stack.url, json=body)
    assert (answer.status_code, answer.json()["code"]) == (500, "digest_mismatch")


async def test_an_output_of_another_size_is_an_error(stack):
    body, path = claimed_input(stack, ROWS, seed=6)
    path.write_bytes(path.read_bytes()[:-1])
    answer = await stack.gateway.client.post(stack.url, json=body)
    assert (answer.status_code, answer.json()["code"]) == (500, "digest_mismatch")


async def test_a_long_output_that_was_altered_is_never_complete(stack):
    body, path = claimed_input(stack, ROWS, seed=7)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(httpx.RemoteProtocolError):
        await stack.gateway.client.post(stack.url, json=body)
