"""FastAPI's document, completed: operations, schemas, errors, headers, security and examples."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from services.gateway.answers import STATUS_OF_CODE, TRY_AGAIN
from services.gateway.openapi import shapes
from services.gateway.openapi.examples import IN_PATH, JSON
from services.gateway.openapi.operations import EVERYWHERE, NOT_READY, OPERATIONS, PUBLIC
from shared.json_schemas import schemas_of

if TYPE_CHECKING:
    from services.gateway.openapi.operations import Answer, Body, Operation

DESCRIPTION: Final = """\
Open Inference Protocol v2 with Triton's binary tensor extension, model uploads, and asynchronous requests.

Errors are `{"error": sentence, "code": code}`; 429 and 503 carry `Retry-After`. Every answer to an inference carries
`x-request-id`. Where API keys are configured, send `Authorization: Bearer KEY` or `X-API-Key: KEY`. Inference bodies
may be compressed (`Content-Encoding: gzip` or `deflate`), and answers are where `Accept-Encoding` asks for it. What
goes through the log is described by the AsyncAPI document at `/asyncapi`.
"""
_SECURITY: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"key": []}, {}]
"""None is needed where no keys are configured."""
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_TEXT: Final = {"type": "string"}
_PRINTABLE: Final = r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$"
_COUNT: Final = {"type": "integer", "minimum": 0}
_ENCODING: Final = {"type": "string", "enum": ["gzip", "deflate"]}
_SENT: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Prefer": (
        "`respond-async`: 202 at once; `respond-async, wait=N`: the answer within N seconds, else 202",
        _TEXT | {"pattern": _PRINTABLE},
    ),
    "Idempotency-Key": (
        "makes repeats safe: one key, one run, one answer. The same key with another body is 409",
        _TEXT | {"pattern": r'^"[A-Za-z0-9._:-]{1,200}"$'},
    ),
    "Inference-Header-Content-Length": ("bytes of the JSON part of a binary body", _COUNT),
    "Content-Encoding": ("how the body is compressed", _ENCODING),
    "Accept-Encoding": ("how the answer may be compressed", _TEXT | {"pattern": _PRINTABLE}),
    "traceparent": ("W3C trace context, carried through to the worker", _TEXT | {"pattern": _PRINTABLE}),
    "Content-Digest": (
        "RFC 9530; checked against what arrives",
        _TEXT | {"pattern": "^sha-256=:[A-Za-z0-9+/]{43}=:$"},
    ),
    "Last-Event-ID": ("of the last event received", _TEXT | {"pattern": _PRINTABLE}),
}
_GIVEN: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Inference-Header-Content-Length": ("bytes of the JSON part of a binary answer", _COUNT),
    "Content-Encoding": ("how the answer is compressed, if it is", _ENCODING),
    "Content-Digest": ("RFC 9530", _TEXT),
    "Content-Disposition": ("a name for the file", _TEXT),
    "Location": ("where to ask", _TEXT),
    "Preference-Applied": ("what of `Prefer` was done", _TEXT),
    "Retry-After": ("seconds", _COUNT | {"minimum": 1}),
    "WWW-Authenticate": ("`Bearer`", _TEXT),
    "x-request-id": ("the platform's id of the request", _TEXT),
}
_SOMETIMES: Final = {"Inference-Header-Content-Length", "Content-Encoding", "x-request-id"}
"""Given with binary outputs, with compressed ones, and not by the door of a gateway that is full."""
_IN_PATH: Final = re.compile(r"{(\w+)}")
_NO_WORD: Final = re.compile(r"\W+")


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document with all that it does not know, the routes below it included."""
    shape_of = _Shapes()
    paths = document["paths"]
    for route, operation in OPERATIONS.items():
        method, path = route.split(" ")
        told = paths.setdefault(path, {}).setdefault(method.lower(), {})
        told |= _operation(told, path, operation, shape_of, public=route in PUBLIC)
    paths["/v2/health/ready"]["get"]["responses"]["503"] = _ready_or_error(shape_of)
    document["components"] = {"schemas": shape_of.components, "securitySchemes": _SCHEMES}
    return document


class _Shapes:
    """Schemas by type, all made at once, so that what two of them refer to is one component."""

    def __init__(self) -> None:
        types: list[Any] = [shapes.Error, NOT_READY.shape]
        for operation in OPERATIONS.values():
            types += [answer.shape for answer in operation.answers.values() if answer.shape is not None]
            types += [operation.body.shape] if operation.body is not None and operation.body.shape is not None else []
        self._types = types
        self._schemas, self.components = schemas_of(types)

    def __getitem__(self, shape: Any) -> dict[str, Any]:
        return self._schemas[self._types.index(shape)]


def _operation(
    told: dict[str, Any], path: str, operation: Operation, shape_of: _Shapes, *, public: bool
) -> dict[str, Any]:
    """The operation, `told` of it by FastAPI so far."""
    described: dict[str, Any] = {
        "operationId": told.get("operationId") or _NO_WORD.sub("_", path).strip("_"),
        "parameters": _parameters(told.get("parameters", []), path, operation),
        "responses": _responses(operation, shape_of, path, public=public),
    }
    if not public:
        described["security"] = _SECURITY
    if operation.body is not None:
        described["requestBody"] = _body(operation.body, operation, shape_of)
    own = {"summary": operation.summary, "description": operation.description, "tags": [*operation.tags] or None}
    return described | {key: value for key, value in own.items() if value}


def _parameters(queries: list[dict[str, Any]], path: str, operation: Operation) -> list[dict[str, Any]]:
    """Those of the path, FastAPI's of the query, and the headers."""
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT, "example": IN_PATH[name]}
        for name in _IN_PATH.findall(path)
    ]
    parameters += [
        query | _examples_of("query", query["name"], operation) for query in queries if query["in"] == "query"
    ]
    for name in operation.headers:
        description, schema = _SENT[name]
        header = {"name": name, "in": "header", "description": description, "schema": schema}
        parameters.append(header | _examples_of("headers", name.lower(), operation))
    return parameters


def _examples_of(where: str, name: str, operation: Operation) -> dict[str, Any]:
    found = {
        key: {"value": getattr(example, where)[name]}
        for key, example in operation.examples.items()
        if name in getattr(example, where)
    }
    return {"examples": found} if found else {}


def _body(body: Body, operation: Operation, shape_of: _Shapes) -> dict[str, Any]:
    content = {} if body.shape is None else {JSON: {"schema": shape_of[body.shape]}}
    content |= {raw: {"schema": {"type": "string", "format": "binary"}} for raw in body.raw}
    for name, example in operation.examples.items():
        if example.body is not None:
            content[example.content_type].setdefault("examples", {})[name] = {"value": example.body}
    return {"required": body.required, "content": content}


def _responses(operation: Operation, shape_of: _Shapes, path: str, *, public: bool) -> dict[str, Any]:
    """Answers by status: those of the route, and one for each status that its errors have."""
    responses = {str(status): _answer(answer, shape_of) for status, answer in operation.answers.items()}
    codes = [*operation.codes, *EVERYWHERE, *([] if public else ["unauthorized"])]
    if "{version}" not in path and operation.body is None:  # the row is that of the path with a version, too
        codes = [code for code in codes if code != "unknown_version"]
    responses |= _errors(codes, shape_of)
    for response in responses.values():
        response.setdefault("headers", {}).update(_headers(operation.always))
    for name, example in operation.examples.items():
        if example.answer is not None:
            content = responses[str(example.status)]["content"][example.answer_type]
            content.setdefault("examples", {})[name] = {"value": example.answer}
    return dict(sorted(responses.items()))


def _answer(answer: Answer, shape_of: _Shapes) -> dict[str, Any]:
    content = {} if answer.shape is None else {answer.content_type: {"schema": shape_of[answer.shape]}}
    content |= {raw: {"schema": {"type": "string"}} for raw in answer.raw}
    told: dict[str, Any] = {"description": answer.description, "headers": _headers(answer.headers)}
    return told | ({"content": content} if content else {})


def _errors(codes: list[str], shape_of: _Shapes) -> dict[str, Any]:
    """One response for each status that these codes have, which are its description."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(STATUS_OF_CODE.get(code, 500), []).append(code)
    return {
        str(status): {
            "description": ", ".join(f"`{code}`" for code in named),
            "headers": _headers(_of_errors(status)),
            "content": {JSON: {"schema": shape_of[shapes.Error]}},
        }
        for status, named in by_status.items()
    }


def _of_errors(status: int) -> tuple[str, ...]:
    if status in TRY_AGAIN:
        return ("Retry-After",)
    return ("WWW-Authenticate",) if status == STATUS_OF_CODE["unauthorized"] else ()


def _headers(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: {"description": _GIVEN[name][0], "schema": _GIVEN[name][1], "required": name not in _SOMETIMES}
        for name in names
    }


def _ready_or_error(shape_of: _Shapes) -> dict[str, Any]:
    told = _answer(NOT_READY, shape_of)
    told["content"][JSON]["schema"] = {"anyOf": [shape_of[NOT_READY.shape], shape_of[shapes.Error]]}
    return told
