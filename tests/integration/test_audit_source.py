"""What Kafka and Redis still have, read back: outcomes that count with their requests and results."""

from __future__ import annotations

import pytest

from services.audit import kafka_source
from services.audit.records import Offsets, RecordedRequest, Selection
from services.worker.settings import WorkerSettings
from shared.results import Result
from support.served import body, serving

pytestmark = pytest.mark.stack

REQUESTS = 120


@pytest.fixture
async def served(backbone):
    """A model that has answered, from all partitions; yields settings, its name and where its requests lie."""
    settings = backbone.settings(WorkerSettings, threads=1)
    async with serving(settings, backbone.model()) as there:
        yield settings, there.model, await there.ask(REQUESTS)


async def read(settings, **selected) -> list:
    async with kafka_source.open_source(settings) as source:
        return [outcome async for outcome in source.outcomes(Selection(**selected))]


async def test_outcomes_come_once_each_with_request_and_result(served):
    settings, model, sent = served
    found = await read(settings, model=model)
    topic = settings.topics.requests(model)
    assert sorted(outcome.at for outcome in found) == sorted((topic, *at) for at in sent)
    assert [outcome.timestamp_ms for outcome in found] == sorted(outcome.timestamp_ms for outcome in found)
    for outcome in found:
        assert isinstance(outcome.request, RecordedRequest)
        assert outcome.request.value == body(int(outcome.receipt.request_id[1:]))
        assert outcome.request.input_sha256 == outcome.receipt.input_sha256
        assert isinstance(outcome.result, Result)
        assert outcome.result.receipt is None

    [one] = await read(settings, request_ids=frozenset(["r7"]))
    assert one.receipt.request_id == "r7"
    some = await read(settings, offsets=(Offsets(topic, 2, 3, 9),))
    assert [outcome.at for outcome in some] == [(topic, 2, offset) for offset in range(3, 9)]
    since = found[40].timestamp_ms
    assert {o.at for o in await read(settings, since_ms=since)} == {o.at for o in found if o.timestamp_ms >= since}
    assert await read(settings, model="another") == []


async def test_the_registrys_log_is_given_whole(served):
    settings, model, _ = served
    async with kafka_source.open_source(settings) as source:
        entries = [entry async for entry in source.registry()]
    assert [type(entry.event).__name__ for entry in entries] == [
        "ModelUploaded",
        "OptimizationClaimed",
        "VariantReady",
        "ModelReady",
    ]
    assert {entry.event.model for entry in entries} == {model}
