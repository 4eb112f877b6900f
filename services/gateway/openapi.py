"""The OpenAPI description of the infer routes, which FastAPI does not know, and of what shows where a request is."""

from __future__ import annotations

import json
from typing import Any, Final

from msgspec.json import schema_components

from services.gateway.answers import STATUS_OF_CODE
from shared.processing import Processing

DESCRIPTION: Final = """\
Open Inference Protocol v2 with Triton's binary tensor extension, model uploads, and asynchronous requests.

Errors are `{"error": sentence, "code": code}`; 503 carries `Retry-After`. Every answer to an inference carries
`x-request-id`. Where API keys are configured, send `Authorization: Bearer KEY` or `X-API-Key: KEY`.
"""

_PARAMETERS: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]},
}
_CLAIM_CHECK: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["uri", "sha256", "byte_size"],
    "properties": {
        "uri": {"type": "string", "minLength": 1, "maxLength": 2048},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "byte_size": {"type": "integer", "minimum": 0},
    },
}
_TENSOR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "examples": ["FP32"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "parameters": _PARAMETERS,
        "data": {
            "anyOf": [
                {"type": "array", "items": {}, "description": "flat or nested, row-major"},
                {**_CLAIM_CHECK, "description": "instead of elements: an object in the artifact store with raw bytes"},
            ]
        },
    },
}
_REQUEST: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "the caller's own; only echoed"},
        "parameters": _PARAMETERS
        | {"description": "`timeout` (µs), `binary_data_output` and `store_outputs` mean something here"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
            },
        },
    },
}
_RESPONSE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "code": {"type": "string", "enum": [*STATUS_OF_CODE, "internal"]}},
}
_ENDED: Final = ("succeeded", "failed", "expired", "cancelled")
_QUEUED: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "state", "status_url"],
    "properties": {
        "id": {"type": "string"},
        "state": {"enum": ["queued", *_ENDED], "description": "queued, but for a repeat with an `Idempotency-Key`"},
        "status_url": {"type": "string"},
    },
}
_STATE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "model_name", "state", "queue_position", "status", "result", "error"],
    "properties": {
        "id": {"type": "string"},
        "model_name": {"type": "string"},
        "state": {"enum": ["queued", "running", *_ENDED]},
        "queue_position": {"type": ["integer", "null"], "minimum": 0, "description": "0 is next"},
        "status": {"enum": [*_ENDED, None], "description": "null until it has ended"},
        "result": {"anyOf": [_RESPONSE, {"type": "null"}]},
        "error": {
            "type": ["object", "null"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
_IN_QUEUE: Final = {
    "id": "0f8fad5b-d9cb-469f-a165-70867728950e",
    "model_name": "digits",
    "state": "queued",
    "queue_position": 3,
    "status": None,
    "result": None,
    "error": None,
}
_SUCCEEDED: Final = _IN_QUEUE | {
    "state": "succeeded",
    "queue_position": None,
    "status": "succeeded",
    "result": {
        "model_name": "digits",
        "model_version": "1",
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [7]}],
    },
}
_REQUEST_STATE: Final[dict[str, Any]] = {
    "description": "the state, and with it the result or the error of a request that has ended",
    "content": {
        "application/json": {
            "schema": _STATE,
            "examples": {"queued": {"value": _IN_QUEUE}, "succeeded": {"value": _SUCCEEDED}},
        }
    },
}
STATE_EVENTS: Final[dict[str, Any]] = {
    "schema": {"type": "string"},
    "example": "".join(
        [
            "retry: 1000\n",
            f"event: state\nid: queued-3\ndata: {json.dumps(_IN_QUEUE)}\n\n",
            f"event: outcome\nid: succeeded\ndata: {json.dumps(_SUCCEEDED)}\n\n",
        ]
    ),
}
"""The content of a stream of such states."""
_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*codes: str) -> dict[str, Any]:
    """One response for each status that these codes have, or all of the table, naming its codes."""
    by_status: dict[int, list[str]] = {}
    for code in codes or STATUS_OF_CODE:
        by_status.setdefault(STATUS_OF_CODE[code], []).append(code)
    return {str(status): _json(", ".join(named), _ERROR) for status, named in sorted(by_status.items())}


def _operation(summary: str, *path_parameters: str) -> dict[str, Any]:
    in_path = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in path_parameters]
    in_header = [
        {
            "name": "Prefer",
            "in": "header",
            "description": "`respond-async`: 202 at once; with `wait=N`: the answer within N seconds, else 202",
            "schema": {"type": "string", "examples": ["respond-async", "respond-async, wait=10"]},
        },
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "makes repeats safe: one key, one run, one answer. The same key with another body is 409",
            "schema": {"type": "string", "maxLength": 257, "examples": ['"8e03978e-40d5-43dd-bc93-6894a57f9324"']},
        },
        {"name": "Inference-Header-Content-Length", "in": "header", "schema": {"type": "integer"}},
        {"name": "traceparent", "in": "header", "schema": {"type": "string"}},
    ]
    ok = _json("the outputs; in binary where the request asked for it", _RESPONSE)
    ok["content"]["application/octet-stream"] = _BINARY
    return {
        "post": {
            "tags": ["Open Inference Protocol"],
            "summary": summary,
            "description": "JSON, or a JSON header followed by the tensors' raw bytes (Triton's binary tensor data).",
            "parameters": in_path + in_header,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _REQUEST}, "application/octet-stream": _BINARY},
            },
            "responses": {"200": ok, "202": _json("accepted, as `Prefer: respond-async` asked", _QUEUED), **_errors()},
        }
    }


_REQUEST_PATH: Final = "/v2/models/{model}/requests/{request_id}"
_ASKING: Final = ("unauthorized", "unknown_request", "overloaded", "log_unavailable", "replies_unavailable", "stopping")

INFER_PATHS: Final[dict[str, Any]] = {
    "/v2/models/{model}/infer": _operation("Run the version that answers", "model"),
    "/v2/models/{model}/versions/{version}/infer": _operation("Run a version", "model", "version"),
}


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document with the routes that it does not know, and with examples whose nulls it would leave out."""
    paths = document["paths"]
    paths |= INFER_PATHS
    state, events = paths[_REQUEST_PATH], paths[f"{_REQUEST_PATH}/events"]
    for operation in (state["get"], state["delete"]):
        operation["responses"]["200"] = _REQUEST_STATE
    for operation in (state["get"], events["get"]):
        operation["responses"] |= _errors(*_ASKING)
    state["delete"]["responses"] |= _errors(*_ASKING, "conflict")
    for operation in (state["get"], state["delete"], events["get"]):
        operation["responses"].pop("422", None)  # FastAPI's own, which is never sent: any string is an id
    _describe_processing(document)
    return document


def _describe_processing(document: dict[str, Any]) -> None:
    """The declaration of the steps around a model, which is an asset like any other."""
    reference = "#/components/schemas/{name}"
    (_,), schemas = schema_components((Processing,), ref_template=reference)
    for field in schemas["Artifact"]["properties"].values():
        if "pattern" in field:  # Python's anchors; JSON Schema has those of ECMA-262
            field["pattern"] = field["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    content = document["paths"]["/v2/repository/assets"]["post"]["requestBody"]["content"]
    content["application/json"] = {"schema": {"$ref": reference.format(name="Processing")}}
