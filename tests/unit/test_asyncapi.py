"""The AsyncAPI document: valid by the specification's own schema, complete, and true to the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest

from shared import asyncapi, codec, requests
from shared.asyncapi_examples import EVENTS, REQUESTS
from shared.codec import MSGPACK
from shared.topics import EVENT_TYPES, FIXED, Topics

SPECIFICATION = Path(__file__).parents[1] / "contract" / "asyncapi-3.0.0.json"
NAMES = Topics("prod.")


@pytest.fixture(scope="module")
def document():
    return json.loads(json.dumps(asyncapi.document(NAMES)))


def test_it_is_valid_asyncapi(document):
    errors = jsonschema_rs.validator_for(json.loads(SPECIFICATION.read_text())).iter_errors(document)
    assert [f"{error.instance_path}: {error.message[:200]}" for error in errors] == []


def test_all_references_lead_somewhere(document):
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        there = document
        for part in reference.split("/"):
            there = there[part]


def test_every_topic_is_there_as_it_is_created(document):
    channels = {channel["address"]: channel for channel in document["channels"].values()}
    assert channels.keys() == {
        *(NAMES.name(topic) for topic in FIXED),
        "prod.requests.{model}",
        "prod.requests.{model}.high",
        "{replyTopic}",
    }
    for topic in FIXED:
        channel = channels[NAMES.name(topic)]
        binding = channel["bindings"]["kafka"]
        assert binding["partitions"] == topic.partitions
        assert binding["topicConfiguration"].keys() == topic.kafka_config.keys()
        assert channel["messages"].keys() == ({event.__name__ for event in topic.events} or {"DeadLettered"})
        assert topic.key in channel["description"]
        assert topic.written_by in channel["description"]
        assert topic.read_by in channel["description"]


def test_every_channel_is_sent_to_or_received_from(document):
    used = {(operation["action"], operation["channel"]["$ref"]) for operation in document["operations"].values()}
    for key in document["channels"]:
        expected = {"send"} if key == asyncapi.REPLY_COPIES else {"send", "receive"}
        assert {action for action, channel in used if channel == f"#/channels/{key}"} == expected


def test_every_header_of_a_request_is_told_of(document):
    told = document["components"]["messages"]["InferenceRequestJson"]["headers"]["properties"].keys()
    every = requests.RequestHeaders(
        request_id="1",
        header_length=1,
        deadline_ms=1,
        model_version=1,
        tenant="acme",
        reply_topic="copies",
        reply_channel="gateway-1",
        registry_offset=1,
        traceparent="00",
    )
    written = {name for name, _ in every.to_kafka("test")}
    assert written - {"ce_specversion", "ce_type", "ce_source", "ce_time"} == set(told)


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_an_example_of_an_event_is_one(name):
    event = codec.decode_event(EVENT_TYPES[name], codec.pack(EVENTS[name]))
    assert codec.to_map(event) == EVENTS[name]


def test_all_examples_are_of_their_schemas(document):
    components = {"components": {"schemas": document["components"]["schemas"]}}
    for name, message in document["components"]["messages"].items():
        assert message["examples"], name
        for example in message["examples"]:
            jsonschema_rs.validate({**message["payload"], **components}, example["payload"])
            jsonschema_rs.validate(message["headers"], example["headers"])


def test_each_form_of_a_request_is_shown():
    forms = {example["headers"]["content-type"] for example in REQUESTS.values()}
    assert forms == {"application/json", MSGPACK, "application/octet-stream"}
