"""From an upload over HTTP to an answer, through every service, against ONNX Runtime called directly."""

from __future__ import annotations

import asyncio
import signal

import numpy as np
import onnxruntime
import orjson
import pytest
import tritonclient.http as triton

from shared.tensors import DTYPES, output_digest
from support import uploads
from support.audit import audit
from support.front_door import outputs_of
from support.gateway import example, json_input, tensor
from support.onnx_models import ONNX_TYPES
from support.storm import storm
from support.waiting import eventually

pytestmark = pytest.mark.stack


def directly(content, inputs):
    return onnxruntime.InferenceSession(content).run(None, inputs)


def ask_triton(url, model, inputs):
    """The outputs by name, in binary, through Triton's own client, unmodified."""
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    given = []
    for name, (datatype, array) in inputs.items():
        given.append(triton.InferInput(name, list(array.shape), datatype))
        if datatype == "BF16":  # its numpy way rounds FP32 values; the bits are what travels
            given[-1]._raw_data = array.tobytes()
            given[-1]._parameters["binary_data_size"] = array.nbytes
        else:
            given[-1].set_data_from_numpy(array)
    result = client.infer(model, given)
    client.close()
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


async def workers_held_back(storm):
    """Until fifty more requests lie in the log: what is found there at once runs together, however slow the senders."""

    def written():
        return sum(each.at is not None for each in storm.sent)

    enough = written() + 50
    for child in storm.workers():
        child.signal(signal.SIGSTOP)
    try:
        await eventually(lambda: written() >= enough, within_s=60, what="requests in the log")
    finally:
        for child in storm.workers():
            child.signal(signal.SIGCONT)


async def test_a_batch_answers_as_onnx_runtime_does_with_the_same_batch(door, stack, backbone):
    name, content = backbone.model(), uploads.mlp().SerializeToString()
    await door.serve(name, content)
    calm = await storm(stack, door, name, requests=200, rate_per_s=400, disturbances=(workers_held_back,))
    found = await audit(calm, lambda inputs: directly(content, inputs)[0])
    assert found.violations == []
    assert found.answers == {"200": sum(each.at is None for each in calm.sent)}
    assert 0 < found.batches < found.outcomes == len(calm.sent), "some requests ran together"
    off = await audit(calm, lambda inputs: directly(content, inputs)[0] * np.float32(1.000001))
    assert len(off.violations) > 100, "the audit sees a bit that is wrong"


# ONNX Runtime's Python can't take strings and BF16 in one run.
@pytest.mark.parametrize("datatypes", [tuple(DTYPES)[:-1], ("BYTES",)], ids=["numbers", "strings"])
async def test_every_datatype_comes_back_bit_by_bit_in_json_and_in_binary(door, stack, backbone, datatypes):
    name = backbone.model()
    every = uploads.model(
        [uploads.helper.make_node("Identity", [datatype], [f"same {datatype}"]) for datatype in datatypes],
        {datatype: (ONNX_TYPES[datatype], ("batch", 3)) for datatype in datatypes},
        {f"same {datatype}": (ONNX_TYPES[datatype], ("batch", 3)) for datatype in datatypes},
    )
    await door.serve(name, every.SerializeToString())

    document = {"inputs": [json_input(datatype) for datatype in datatypes]}
    response = await door.http.post(f"/v2/models/{name}/infer", content=orjson.dumps(document))
    assert response.status_code == 200, response.text
    in_json = {output.name: bytes(output.data) for output in outputs_of(response.json())}
    assert in_json == {f"same {datatype}": bytes(tensor(datatype).data) for datatype in datatypes}

    inputs = {datatype: (datatype, example(datatype)) for datatype in datatypes}
    in_binary = await asyncio.to_thread(ask_triton, stack.gateway_url, name, inputs)
    for datatype in set(datatypes) - {"BF16"}:
        assert np.array_equal(in_binary[f"same {datatype}"], example(datatype)), datatype
    if "BF16" in datatypes:  # Triton's client shows it as the FP32 numbers that it stands for
        bits = in_binary["same BF16"].astype(np.float32).view(np.uint32) >> 16
        assert np.array_equal(bits, example("BF16"))


async def test_magika_answers_bit_by_bit_as_onnx_runtime_does(door, stack, backbone):
    name, content = backbone.model(), uploads.magika()
    version = await door.serve(name, content)
    state = await door.through_the_gate(name, version)
    assert state["chosen"] == "fp32", "the stack of the tests lets nothing else pass"
    tokens = np.random.default_rng(0).integers(0, 257, (1, 2048), np.int32)
    expected = directly(content, {"bytes": tokens})[0]

    over_json = await door.infer(name, {"bytes": tokens})
    over_binary = await asyncio.to_thread(ask_triton, stack.gateway_url, name, {"bytes": ("INT32", tokens)})

    assert bytes(over_json.outputs[0].data) == expected.tobytes()
    assert next(iter(over_binary.values())).tobytes() == expected.tobytes()
    result = await door.result(name, over_json.id)
    assert output_digest(outputs_of(result["result"])) == output_digest(over_json.outputs)
