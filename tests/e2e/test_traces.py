"""Traces through gateway, Kafka, worker and Redis, as a collector receives them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from support import onnx_models
from support.front_door import body
from support.otlp_receiver import receiver
from support.small_stack import small_stack
from support.waiting import eventually

pytestmark = pytest.mark.stack
LINEAR = onnx_models.linear()
CALLER, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
UPSTREAM = "5bf92f3577b34da6a3ce929d0e0e4736"
SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
PHASES = ("queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture
def collector():
    with receiver() as there:
        yield there


@pytest.fixture
async def there(backbone, collector, tmp_path):
    async with small_stack(backbone, tmp_path, otlp_endpoint=collector.url) as stack:
        yield stack


async def test_a_request_is_one_trace_from_its_caller_to_its_answer(there, backbone, collector):
    model = backbone.model()
    await there.serve(model, LINEAR)
    asked = body({"x": np.ones((1, 4), np.float32)})
    path = f"/v2/models/{model}/infer"

    response = await there.door.http.post(path, content=asked, headers={"traceparent": f"00-{CALLER}-{SPAN}-01"})
    assert response.status_code == 200
    spans = await eventually(lambda: _whole(collector, CALLER, 8), within_s=40)
    assert len({span.trace_id for span in spans.values()}) == 1
    call, process = spans["POST"], spans["process"]
    assert (call.service, call.kind, call.parent_id) == ("aiaas-gateway", SERVER, SPAN)
    assert call.attributes["messaging.message.id"] == response.headers["x-request-id"]
    assert call.attributes["http.response.status_code"] == 200
    assert (spans["send"].kind, spans["send"].parent_id) == (PRODUCER, call.span_id)
    assert (spans["await"].kind, spans["await"].parent_id) == (CLIENT, call.span_id)
    assert (process.service, process.kind, process.parent_id) == ("aiaas-worker", CONSUMER, call.span_id)
    assert process.attributes["messaging.kafka.offset"] == spans["send"].attributes["messaging.kafka.offset"]
    assert {spans[name].parent_id for name in (*PHASES, "settle")} == {process.span_id}
    assert spans["compute_infer"].attributes["aiaas.batch.size"] == 1
    steps = [spans[name] for name in (*PHASES, "settle")]
    assert all(before.end_ns == after.start_ns for before, after in itertools.pairwise(steps))
    assert all(span.start_ns <= span.end_ns for span in spans.values())

    # Not sampled by the caller: nobody keeps anything of it, and the answer is the same.
    headers = {"traceparent": f"00-{'9' * 32}-{SPAN}-00"}
    assert (await there.door.http.post(path, content=asked, headers=headers)).status_code == 200
    # The other lane, and an upstream producer's record.
    later = await there.door.http.post(path, content=asked, headers={"prefer": "respond-async, wait=30"})
    assert later.status_code == 200
    await there.door.send(model, asked, ce_id="up-1", traceparent=f"00-{UPSTREAM}-{SPAN}-01")
    spans = await eventually(lambda: _whole(collector, UPSTREAM, 6), within_s=40)
    assert spans["process"].parent_id == SPAN
    of_later = await eventually(lambda: _of_request(collector, _id(later)), within_s=40)
    spans = await eventually(lambda: _whole(collector, of_later.trace_id, 9), within_s=40)
    assert spans["process"].parent_id == spans["POST"].span_id
    assert not [span for span in collector.spans if span.trace_id == "9" * 32]


def _id(response):
    return response.headers["x-request-id"]


def _of_request(collector, request_id):
    """Any span of a request, when one has come."""
    return next((s for s in collector.spans if s.attributes.get("messaging.message.id") == request_id), None)


def _whole(collector, trace_id, count):
    """The trace, when so many spans of it have come."""
    spans = collector.trace(trace_id)
    return spans if len(spans) >= count else None
