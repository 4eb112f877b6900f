"""The AsyncAPI document of the log: every topic, what its records are, who writes and who reads them.

Made from the code: rows from `topics`, payloads from `events` and `oip_shapes`, request headers from `requests`, and
examples from `asyncapi_examples`, each of which a test sends or decodes. It is written from the platform's side: it
`receive`s requests and `send`s outcomes.

Payload schemas are JSON Schema, as AsyncAPI has them; what lies on the wire is the content type's business. Events are
msgpack maps: the same keys, strings also where a schema's map is by number, and raw bytes where a schema says base64.
https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from shared import topics
from shared.asyncapi_examples import DEAD_LETTER, EVENTS, REPLY, REQUESTS
from shared.codec import MSGPACK
from shared.json_schemas import reference, schemas_of
from shared.oip import BINARY, JSON
from shared.oip_shapes import InferenceRequest, InferenceResponse, PackedRequest
from shared.requests import MAX_HEADER_BYTES, MAX_ID_BYTES
from shared.topics import FIXED, MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.events import Event
    from shared.topics import Topic, Topics

VERSION: Final = "0.1.0"
DESCRIPTION: Final = """\
Records have CloudEvents 1.0 attributes as `ce_*` headers (Kafka binding, binary mode). Events are msgpack maps whose
`schema` is the version of their form; fields that a reader does not know are ignored, a newer `schema` is refused.

Every accepted request gets exactly one outcome: of the records in `outcomes` that name a request partition, one counts
if its request offset is above the highest that was seen for that partition. Anyone may produce requests; nothing that a
record contains stops the partition it lies in.

Answers lie in Redis, not on a topic: `aiaas:result:{model}:{id}` is a msgpack map `{id, status, model_name,
model_version, outputs[{name, datatype, shape, data}], error{code, message}, receipt}`, set once, for a configured time.
`GET /v2/models/{model}/requests/{id}` of a gateway shows it as JSON.
"""
_BINDING: Final = "0.5.0"
_TEXT: Final[dict[str, Any]] = {"type": "string"}
_NUMBER: Final[dict[str, Any]] = {"type": "string", "pattern": "^[0-9]{1,18}$"}
"""Headers are bytes: a number is its ASCII digits."""
_ENVELOPE: Final[dict[str, Any]] = {
    "ce_specversion": {"const": "1.0"},
    "ce_type": _TEXT,
    "ce_source": _TEXT | {"description": "the instance that wrote it"},
    "ce_id": _TEXT,
    "ce_time": _TEXT | {"format": "date-time"},
    "content-type": _TEXT,
    "traceparent": _TEXT | {"description": "W3C trace context, where there is one"},
}
_ASCII: Final[dict[str, Any]] = {"type": "string", "maxLength": MAX_HEADER_BYTES}
_ASKED: Final[dict[str, Any]] = {
    "ce_id": {
        "type": "string",
        "pattern": f"^[\\x21-\\x7e]{{1,{MAX_ID_BYTES}}}$",
        "description": "the request's id; absent: `{topic}-{partition}-{offset}`",
    },
    "content-type": {"enum": [JSON, MSGPACK, BINARY], "description": "absent: JSON is tried"},
    "inference-header-content-length": _NUMBER | {"description": "bytes of the JSON part of the binary form"},
    "deadline": _NUMBER | {"description": "Unix time in ms; absent: it can wait"},
    "model-version": _NUMBER | {"description": "absent: the registry chooses"},
    "tenant": _ASCII | {"description": "an assertion: ACLs say who may produce"},
    "reply-topic": _ASCII | {"description": "where a copy of the reply goes; below a configured prefix"},
    "reply-channel": _ASCII | {"description": "the gateway that waits; gateways alone send it"},
    "registry-offset": _NUMBER | {"description": "the registry it was checked against; gateways alone send it"},
    "traceparent": _ASCII,
}
_FAILED: Final[dict[str, Any]] = {
    "x-original-topic": _TEXT,
    "x-original-partition": _NUMBER,
    "x-original-offset": _NUMBER,
    "x-error-code": _TEXT,
    "x-error": _TEXT,
    "x-attempt": _NUMBER,
    "x-omitted-bytes": _NUMBER | {"description": "of a key and value too large to be kept here"},
}
_ECHOED: Final = {"^x-": _TEXT | {"description": "carried onto the reply copy"}}
_FORMS: Final = {
    "InferenceRequestJson": (JSON, InferenceRequest, "An Open Inference Protocol v2 request body."),
    "InferenceRequestMsgpack": (MSGPACK, PackedRequest, "The same map, tensors as raw bytes. What gateways write."),
    "InferenceRequestBinary": (BINARY, None, "A JSON header and the tensors' bytes behind it, as Triton has it."),
}
REPLY_COPIES: Final = "replyCopies"


@cache
def document(names: Topics) -> dict[str, Any]:
    """The document of the platform under these topics' prefix; everyone is given the same one."""
    channels = {"requests": _requests(names, high=False), "requestsHigh": _requests(names, high=True)}
    channels |= {_key(topic): _channel(names.name(topic), topic, _messages_of(topic)) for topic in FIXED}
    channels[REPLY_COPIES] = _reply_copies()
    types = [event for topic in FIXED for event in topic.events]
    _, schemas = schemas_of([*types, InferenceRequest, PackedRequest, InferenceResponse])
    schemas = {name: _discriminated(schema) for name, schema in schemas.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "aiaas", "version": VERSION, "description": DESCRIPTION, "license": {"name": "Apache-2.0"}},
        "defaultContentType": MSGPACK,
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "variables": {"bootstrap": {"default": "127.0.0.1:9092", "description": "bootstrap servers"}},
            }
        },
        "channels": channels,
        "operations": _operations(names),
        "components": {"messages": _messages(types), "schemas": schemas | {"Bytes": _bytes()}},
    }


# --------------------------------------------------------------------------- channels


def _key(topic: Topic) -> str:
    """`dead-letters` as `deadLetters`: keys of the document are identifiers."""
    first, *rest = topic.name.rstrip(".").split("-")
    return first + "".join(word.capitalize() for word in rest)


def _channel(address: str, topic: Topic, messages: list[str]) -> dict[str, Any]:
    return {
        "address": address,
        "title": topic.name,
        "description": f"{topic.value}. Key: {topic.key}. Written by {topic.written_by}; read by {topic.read_by}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": _kafka(topic)},
    }


def _kafka(topic: Topic) -> dict[str, Any]:
    """The topic as it is created; of its settings, what the binding has a type for is of that type."""
    config: dict[str, Any] = {
        name: int(value) if value.lstrip("-").isdecimal() else value for name, value in topic.kafka_config.items()
    }
    if policy := config.get("cleanup.policy"):
        config["cleanup.policy"] = policy.split(",")
    return {"partitions": topic.partitions, "topicConfiguration": config, "bindingVersion": _BINDING}


def _requests(names: Topics, *, high: bool) -> dict[str, Any]:
    channel = _channel(names.requests("{model}", high=high), topics.REQUESTS, list(_FORMS))
    priority = "Urgent requests, served before the usual ones. " if high else ""
    partitions = " Partitions as `AIAAS_REQUEST_PARTITIONS` says when the model is first uploaded."
    return channel | {
        "title": "requests, urgent" if high else "requests",
        "description": priority + channel["description"] + partitions,
        "parameters": {"model": {"description": "1 to 100 letters, digits and hyphens, not beginning with one"}},
    }


def _reply_copies() -> dict[str, Any]:
    return {
        "address": "{replyTopic}",
        "title": "copies of replies",
        "description": "Where the header `reply-topic` of a request says: the answer, with the key of the request.",
        "parameters": {"replyTopic": {"description": "below a prefix of `AIAAS_REPLY_TOPIC_PREFIXES`, none of ours"}},
        "messages": {"InferenceAnswered": {"$ref": "#/components/messages/InferenceAnswered"}},
    }


def _messages_of(topic: Topic) -> list[str]:
    return [event.__name__ for event in topic.events] or ["DeadLettered"]


# --------------------------------------------------------------------------- operations


def _operations(names: Topics) -> dict[str, Any]:
    """What the platform does with each topic; upstream systems do the opposite."""
    group = {"kafka": {"groupId": {"const": names.worker_group("{model}")}, "bindingVersion": _BINDING}}
    requests = {
        f"receive{key[0].upper()}{key[1:]}": _operation("receive", key, "Workers answer it.") | {"bindings": group}
        for key in ("requests", "requestsHigh")
    }
    requests["sendRequests"] = _operation("send", "requests", "Gateways write what came by HTTP.")
    requests["sendRequestsHigh"] = _operation("send", "requestsHigh", "Gateways write what came by HTTP.")
    requests["sendReplyCopies"] = _operation("send", REPLY_COPIES, "Workers write copies where a request asks.")
    for topic in FIXED:
        key = _key(topic)
        name = key[0].upper() + key[1:]
        requests[f"send{name}"] = _operation("send", key, f"Written by {topic.written_by}.")
        requests[f"receive{name}"] = _operation("receive", key, f"Read by {topic.read_by}.")
    return requests


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


# --------------------------------------------------------------------------- messages


def _messages(types: list[type[Event]]) -> dict[str, Any]:
    messages = {event.__name__: _event(event) for event in types}
    for name, (content_type, shape, summary) in _FORMS.items():
        payload = reference("Bytes" if shape is None else shape.__name__)
        shown = {
            key: example for key, example in REQUESTS.items() if example["headers"]["content-type"] == content_type
        }
        headers = {"type": "object", "properties": _ASKED, "patternProperties": _ECHOED}
        messages[name] = _message(content_type, summary, headers, payload, topics.REQUESTS.key, shown)
    answered = {"anyOf": [reference("InferenceResponse"), _failure()]}
    summary = "An answer, or why there is none; `x-*` headers of the request come with it."
    headers = _headers(_ENVELOPE) | {"patternProperties": _ECHOED}
    messages["InferenceAnswered"] = _message(JSON, summary, headers, answered, "the request's", REPLY)
    messages["DeadLettered"] = _message(
        BINARY,
        "The record's key and value as they were; `content-type` is the record's own.",
        _headers(_ENVELOPE | _FAILED, *(name for name in _FAILED if name != "x-omitted-bytes")),
        reference("Bytes"),
        topics.DEAD_LETTERS.key,
        DEAD_LETTER,
    )
    return messages


def _event(event: type[Event]) -> dict[str, Any]:
    name = event.__name__
    [topic] = [topic for topic in FIXED if event in topic.events]
    summary = (event.__doc__ or name).partition("\n")[0]
    headers = _headers(_ENVELOPE | {"ce_type": {"const": name}, "content-type": {"const": MSGPACK}})
    shown = {name: {"payload": EVENTS[name], "headers": _shown_envelope(name, topic)}}
    return _message(MSGPACK, summary, headers, reference(name), topic.key, shown)


def _message(
    content_type: str,
    summary: str,
    headers: dict[str, Any],
    payload: dict[str, Any],
    key: str,
    shown: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        "contentType": content_type,
        "summary": summary,
        "headers": headers,
        "payload": payload,
        "bindings": {"kafka": {"key": _TEXT | {"description": key}, "bindingVersion": _BINDING}},
        "examples": [{"name": name, **example} for name, example in shown.items()],
    }


def _headers(properties: dict[str, Any], *more: str) -> dict[str, Any]:
    """`traceparent` alone may be absent."""
    required = [name for name in _ENVELOPE if name != "traceparent"]
    return {"type": "object", "required": [*required, *more], "properties": properties}


def _shown_envelope(event_type: str, topic: Topic) -> dict[str, str]:
    return {
        "ce_specversion": "1.0",
        "ce_type": event_type,
        "ce_source": "gateway-1" if topic is MODELS else "worker-1",
        "ce_id": "6f1c1f0e-63c5-4d3f-9a52-3a8a58c1d1b7",
        "ce_time": "2026-11-23T21:00:00.000000000Z",
        "content-type": MSGPACK,
    }


def _discriminated(schema: Any) -> Any:
    """The schema with its discriminators as AsyncAPI has them: the name of the property, without OpenAPI's mapping."""
    if isinstance(schema, list):
        return [_discriminated(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value["propertyName"] if key == "discriminator" else _discriminated(value) for key, value in schema.items()
    }


def _bytes() -> dict[str, Any]:
    return {"type": "string", "contentEncoding": "base64", "description": "raw bytes, shown here in base64"}


def _failure() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["error", "code", "status"],
        "properties": {"error": _TEXT, "code": _TEXT, "status": {"enum": ["failed", "expired", "cancelled"]}},
    }
