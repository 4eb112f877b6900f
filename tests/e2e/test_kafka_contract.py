"""The direct Kafka contract, by a producer that knows nothing but the document: `confluent-kafka`."""

from __future__ import annotations

import asyncio
import json
import struct

import msgpack
import numpy as np
import onnxruntime
import orjson
import pytest

from shared.topics import MODELS
from support import uploads
from support.front_door import body, front_door, row
from support.garbage import garbage
from support.waiting import eventually

pytestmark = pytest.mark.stack
MODEL = uploads.mlp().SerializeToString()


@pytest.fixture(scope="module")
def model(stack, backbone):
    """A served model; the tests keep their request ids apart."""

    async def serve(name):
        async with front_door(stack.environment) as door:
            await door.serve(name, MODEL)

    asyncio.run(serve(name := backbone.model()))
    return name


def expected(inputs):
    return onnxruntime.InferenceSession(MODEL).run(None, inputs)[0]


def answered(state):
    [output] = state["result"]["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def in_msgpack(x):
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tobytes()}
    return msgpack.packb({"inputs": [tensor]}), {"content_type": "application/msgpack"}


def in_binary(x):
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [tensor]}).encode()
    content = {"content_type": "application/octet-stream", "inference_header_content_length": str(len(header))}
    return header + struct.pack(f"<{x.size}f", *x.ravel()), content


def in_json(x):
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode(), {"content_type": "application/json"}


@pytest.mark.parametrize("written", [in_json, in_msgpack, in_binary])
async def test_a_producer_that_knows_the_contract_gets_its_result(door, model, written):
    inputs = row(1)
    value, headers = written(inputs["x"])
    await door.send(model, value, ce_id=f"from-{written.__name__}", **headers)
    state = await door.result(model, f"from-{written.__name__}")
    assert state["state"] == "succeeded", state
    assert answered(state).tobytes() == expected(inputs).tobytes()


async def test_a_copy_of_the_reply_goes_where_the_request_says(door, model, stack):
    [prefix] = json.loads(stack.environment["AIAAS_REPLY_TOPIC_PREFIXES"])
    await door.create_topic(f"{prefix}mine")
    copies = door.log(f"{prefix}mine")
    inputs = row(2)
    value, headers = in_json(inputs["x"])
    about = {"ce_id": "copied", "reply_topic": f"{prefix}mine", "x_trace": "abc"} | headers
    await door.send(model, value, key=b"customer-7", **about)

    [copy] = await eventually(lambda: asyncio.to_thread(copies.poll), within_s=20, what="the copy of the reply")
    told = dict(copy.headers())
    assert (copy.key(), told["ce_id"], told["x-trace"]) == (b"customer-7", b"copied", b"abc")
    assert told["content-type"] == b"application/json"
    assert answered({"result": orjson.loads(copy.value())}).tobytes() == expected(inputs).tobytes()


@pytest.mark.alone
async def test_garbage_fails_and_is_buried_within_two_seconds_and_what_follows_flows(door, model):
    good, misshapen = body(row(3)), body(row(3, columns=9))
    await door.send(model, good, ce_id="warm", partition=0)
    assert (await door.result(model, "warm"))["state"] == "succeeded"
    requests, outcomes, graves = door.log(door.topics.requests(model)), door.outcomes(), door.dead_letters()

    places = [
        await door.send(model, value, partition=0, **headers)
        for value, headers in garbage(good, misshapen, door.topics.name(MODELS))
    ]
    after = await door.send(model, good, ce_id="after", partition=0)

    async def settled():
        await asyncio.to_thread(outcomes.poll)
        return after in outcomes.accepted

    await eventually(settled, within_s=20, what="an outcome of the record behind the garbage")
    assert len(places) > 20
    assert outcomes.accepted[after].status == "succeeded"
    assert {outcomes.accepted[at].status for at in places} == {"failed"}
    asked_ms = {message.offset(): message.timestamp()[1] for message in await asyncio.to_thread(requests.poll)}
    letters = {int(dict(letter.headers())["x-original-offset"]): letter for letter in await buried(graves, places)}
    assert set(letters) == {offset for _, _, offset in places}
    for at in places:
        assert outcomes.written_ms[at] - asked_ms[at[2]] < 2000
        assert letters[at[2]].timestamp()[1] - asked_ms[at[2]] < 2000
    assert outcomes.written_ms[after] - asked_ms[after[2]] < 2000


async def buried(graves, places):
    """The dead letters of these requests: as many as there are places, once they are there."""
    topic = places[0][0].encode()
    found = []

    async def look():
        found.extend(m for m in await asyncio.to_thread(graves.poll) if dict(m.headers())["x-original-topic"] == topic)
        return len(found) >= len(places)

    await eventually(look, what=f"{len(places)} dead letters")
    assert len(found) == len(places)
    return found


async def test_the_same_id_on_two_models_by_two_tenants_and_twice(door, model, backbone):
    other_model = backbone.model()
    await door.serve(other_model, MODEL)
    value = body(row(4))
    first = await door.send(model, value, ce_id="one", key=b"k")
    again = await door.send(model, value, ce_id="one", key=b"k")
    another_body = await door.send(model, body(row(5)), ce_id="one", key=b"k")
    another_tenant = await door.send(model, value, ce_id="one", key=b"k", tenant="someone-else")
    elsewhere = await door.send(other_model, value, ce_id="one", key=b"k")
    outcomes = door.outcomes()
    places = (first, again, another_body, another_tenant, elsewhere)

    async def settled():
        await asyncio.to_thread(outcomes.poll)
        return all(at in outcomes.accepted for at in places)

    await eventually(settled, within_s=20, what="an outcome of each")
    found = [outcomes.accepted[at] for at in places]
    assert [receipt.status for receipt in found] == ["succeeded", "succeeded", "failed", "failed", "succeeded"]
    assert [receipt.error_code for receipt in found[2:4]] == ["id_conflict"] * 2
    assert (found[1].duplicate_of.partition, found[1].duplicate_of.offset) == first[1:]
    assert found[1].output_sha256 == found[0].output_sha256
    assert found[0].duplicate_of is None
    assert found[4].duplicate_of is None
    assert answered(await door.result(model, "one")).tobytes() == expected(row(4)).tobytes()
