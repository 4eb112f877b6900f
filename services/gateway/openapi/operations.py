"""One row a route: what it answers, which of our errors it can give, which headers mean something to it.

Every route can also answer 503 (all connections are taken, or Kafka is not there yet), and all but `PUBLIC` 401.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from services.gateway.answers import STATUS_OF_CODE
from services.gateway.openapi import examples, shapes
from services.gateway.openapi import triton_shapes as triton
from services.gateway.openapi.examples import BINARY, EVENTS, JSON, ZIP
from services.gateway.optimization import Feedback
from shared.artifacts import Artifact
from shared.oip_shapes import InferenceRequest, InferenceResponse
from shared.optimization import Policy, Update
from shared.processing import Processing
from shared.runtime_config import RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.gateway.openapi.examples import Example

EVERYWHERE: Final = ("overloaded", "log_unavailable")
PUBLIC: Final = frozenset({"GET /v2/health/live", "GET /v2/health/ready", "GET /asyncapi"})
"""Routes that need no key."""

_VERSION: Final = ("unknown_model", "unknown_version")
_DESCRIBED: Final = (*_VERSION, "model_rejected", "model_retired", "not_ready", "not_loaded")
_BODY: Final = ("invalid_input", "stalled", "too_large", "unsupported_encoding")
_FILE: Final = (*_BODY, "digest_mismatch", "store_unavailable")
_CHANGED: Final = ("unknown_model", "conflict")
_ASKED: Final = ("unknown_request", "replies_unavailable", "stopping")
_NEVER_BY_INFER: Final = {
    "method_not_allowed",
    "not_found",
    "unknown_request",
    "unknown_export",
    "conflict",
    "unfinished",
}
_BY_INFER: Final = (*(code for code in STATUS_OF_CODE if code not in _NEVER_BY_INFER), "internal")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no error. `shape` is that of its JSON, or of each event; `raw` ones are bytes."""

    description: str
    shape: Any = None
    raw: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent: JSON of a shape, bytes, or either."""

    shape: Any = None
    raw: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True, slots=True)
class Operation:
    """What FastAPI does not know of a route."""

    answers: Mapping[int, Answer]
    examples: Mapping[str, Example]
    codes: tuple[str, ...] = ()
    body: Body | None = None
    headers: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    """Headers of every answer, errors too."""
    summary: str | None = None
    """Of what is served below FastAPI."""
    description: str | None = None
    tags: tuple[str, ...] = field(default=())


def _json(shape: Any, shown: Mapping[str, Example], *codes: str, body: Body | None = None) -> Operation:
    """200 with JSON."""
    return Operation({200: Answer("done", shape)}, shown, codes, body)


def _infer(summary: str, shown: Mapping[str, Example]) -> Operation:
    outputs = Answer(
        "the outputs, in binary where the request asked for it",
        InferenceResponse,
        (BINARY,),
        ("Inference-Header-Content-Length", "Content-Encoding"),
    )
    later = Answer("accepted, as `Prefer` asked", shapes.Accepted, headers=("Location", "Preference-Applied"))
    return Operation(
        {200: outputs, 202: later},
        shown,
        _BY_INFER,
        Body(InferenceRequest, (BINARY,)),
        (
            "Prefer",
            "Idempotency-Key",
            "Inference-Header-Content-Length",
            "Content-Encoding",
            "Accept-Encoding",
            "traceparent",
        ),
        ("x-request-id",),
        summary,
        "JSON, or a JSON header followed by the tensors' raw bytes (Triton's binary tensor data).",
        ("Open Inference Protocol",),
    )


def _request(answers: Mapping[int, Answer], shown: Mapping[str, Example], *codes: str, **more: Any) -> Operation:
    return Operation(answers, shown, (*_ASKED, *codes), **more)


_ID: Final = ("x-request-id",)
_STATE: Final = {200: Answer("its state, and its result or error once it has ended", shapes.RequestState, headers=_ID)}
_STREAM: Final = {
    200: Answer(
        "`state` at once and at each change, then `outcome`, with what `GET` shows",
        shapes.StateEvent,
        content_type=EVENTS,
    ),
    204: Answer("`Last-Event-ID` says that the outcome was received: don't come back"),
}
_OPTIONAL_LOAD: Final = Body(triton.NoParameters, required=False)
_OPTIONAL_UNLOAD: Final = Body(triton.Unload, required=False)
_OPTIONAL_FILTER: Final = Body(triton.IndexFilter, required=False)
_REFUSED: Final = Operation({}, examples.REFUSED, ("unsupported",))
_IN_PATH: Final = re.compile(r"{\w+}")
_M: Final = "/v2/models/{model}"
_R: Final = "/v2/repository/models/{model}"

OPERATIONS: Final[dict[str, Operation]] = {
    "GET /v2/health/live": _json(shapes.Live, examples.LIVE),
    "GET /v2/health/ready": _json(shapes.Ready, examples.READY),
    "GET /v2": _json(shapes.Server, examples.SERVER),
    f"POST {_M}/infer": _infer("Run the version that answers", examples.INFER),
    f"POST {_M}/versions/{{version}}/infer": _infer("Run a version", examples.INFER_VERSION),
    f"GET {_M}/requests/{{request_id}}": _request(_STATE, examples.STATE),
    f"DELETE {_M}/requests/{{request_id}}": _request(_STATE, examples.CANCEL, "conflict"),
    f"GET {_M}/requests/{{request_id}}/events": _request(_STREAM, examples.STATE_EVENTS, headers=("Last-Event-ID",)),
    "GET /v2/repository/models": _json(list[shapes.ModelState], examples.MODELS),
    f"GET {_R}/versions": _json(shapes.ModelState, examples.VERSIONS, "unknown_model"),
    f"GET {_R}/versions/{{version}}": _json(shapes.VersionState, examples.VERSION, *_VERSION),
    f"POST {_R}/versions": Operation(
        {202: Answer("it is in the log", shapes.Uploaded, headers=("Location",))},
        examples.UPLOAD,
        (*_FILE, "artifact_not_found", "conflict"),
        Body(raw=(BINARY,)),
        ("Content-Digest",),
    ),
    "POST /v2/repository/assets": Operation(
        {201: Answer("it is in the store", Artifact)},
        examples.STORE,
        _FILE,
        Body(Processing, (BINARY,)),
        ("Content-Digest",),
    ),
    f"POST {_R}/versions/{{version}}/promote": _json(shapes.Routing, examples.ROUTING, *_CHANGED, "unknown_version"),
    f"POST {_R}/versions/{{version}}/retire": _json(shapes.Routing, examples.RETIRE, *_CHANGED, "unknown_version"),
    f"POST {_R}/update": Operation(
        {202: Answer("it is in the log", shapes.Uploaded, headers=("Location",))},
        examples.UPDATE,
        (*_CHANGED, *_FILE, "unknown_version", "artifact_not_found"),
        Body(Update),
    ),
    f"POST {_R}/versions/{{version}}/cancel": _json(
        shapes.VersionState, examples.CANCEL_WORK, *_CHANGED, "unknown_version"
    ),
    f"POST {_R}/policy": _json(shapes.ModelPolicy, examples.POLICY, "unknown_model", *_BODY, body=Body(Policy)),
    f"POST {_M}/requests/{{request_id}}/feedback": Operation(
        {202: Answer("it is in the log", shapes.FeedbackTaken)},
        examples.FEEDBACK,
        ("unknown_model", *_BODY),
        Body(Feedback),
    ),
    f"POST {_R}/versions/{{version}}/export": Operation(
        {202: Answer("it is in the log, or was asked for before", shapes.ExportState, headers=("Location",))},
        examples.EXPORT,
        (*_CHANGED, "unknown_version", "invalid_input", "unsupported", "not_ready"),
    ),
    f"GET {_R}/versions/{{version}}/export/{{export_id}}": _json(
        shapes.ExportState, examples.EXPORT_STATE, *_VERSION, "unknown_export"
    ),
    f"GET {_R}/versions/{{version}}/export/{{export_id}}/file": Operation(
        {200: Answer("the file", raw=(BINARY, ZIP), headers=("Content-Digest", "Content-Disposition"))},
        examples.EXPORT_FILE,
        (*_VERSION, "unknown_export", "unfinished", "conflict", "artifact_not_found", "store_unavailable"),
    ),
    f"POST {_R}/config": _json(
        shapes.RuntimeConfigured, examples.CONFIGURE, *_CHANGED, *_BODY, body=Body(RuntimeConfig)
    ),
    f"POST {_R}/versions/{{version}}/config": _json(
        shapes.RuntimeConfigured,
        examples.CONFIGURE_VERSION,
        *_CHANGED,
        *_BODY,
        "unknown_version",
        body=Body(RuntimeConfig),
    ),
    "GET /v2/workers": _json(list[shapes.Instance], examples.WORKERS),
    f"POST {_R}/rollback": _json(shapes.Routing, examples.ROLL_BACK, *_CHANGED),
    f"POST {_R}/retire": _json(shapes.Routing, examples.RETIRE, *_CHANGED),
    f"POST {_R}/traffic": _json(
        shapes.Routing, examples.SPLIT, *_CHANGED, *_BODY, "unknown_version", body=Body(shapes.Traffic)
    ),
    f"POST {_R}/load": _json(
        shapes.Routing,
        examples.LOAD,
        *_CHANGED,
        *_BODY,
        "model_retired",
        "model_rejected",
        "not_loaded",
        "unfinished",
        body=_OPTIONAL_LOAD,
    ),
    f"POST {_R}/unload": _json(shapes.Routing, examples.UNLOAD, *_CHANGED, *_BODY, "unfinished", body=_OPTIONAL_UNLOAD),
    "POST /v2/repository/index": _json(list[triton.IndexEntry], examples.INDEX, *_BODY, body=_OPTIONAL_FILTER),
    "GET /v2/models/stats": _json(triton.Statistics, examples.STATISTICS),
    "GET /v2/trace/setting": _json(triton.TraceSettings, examples.TRACING),
    "POST /v2/trace/setting": _REFUSED,
    f"GET {_M}/trace/setting": _json(triton.TraceSettings, examples.TRACING, "unknown_model"),
    f"POST {_M}/trace/setting": Operation({}, examples.REFUSED, ("unsupported", "unknown_model")),
    "GET /v2/logging": _json(triton.LogSettings, examples.LOGGING),
    "POST /v2/logging": _REFUSED,
    "GET /asyncapi": _json(dict[str, Any], examples.ASYNCAPI),
}
for _of in (_M, f"{_M}/versions/{{version}}"):
    OPERATIONS.update(
        {
            f"GET {_of}": _json(shapes.ModelMetadata, examples.METADATA, *_DESCRIBED),
            f"GET {_of}/ready": _json(shapes.ModelReady, examples.MODEL_READY, *_DESCRIBED),
            f"GET {_of}/stats": _json(triton.Statistics, examples.STATISTICS, *_VERSION),
            f"GET {_of}/config": _json(triton.ModelConfig, examples.CONFIG, *_DESCRIBED),
        }
    )
for _kind in ("system", "cuda"):
    _memory = f"/v2/{_kind}sharedmemory"
    OPERATIONS.update(
        {
            f"GET {_memory}/status": _json(list[Any], examples.NO_REGIONS),
            f"GET {_memory}/region/{{region}}/status": Operation({}, examples.NO_REGION, ("not_found",)),
            f"POST {_memory}/region/{{region}}/register": _REFUSED,
            f"POST {_memory}/unregister": _json(triton.NoRegions, examples.UNREGISTER_ALL),
            f"POST {_memory}/region/{{region}}/unregister": _json(triton.NoRegion, examples.UNREGISTER),
        }
    )

NOT_READY: Final = Answer("not ready; `waiting_for` says what is missing", shapes.Ready)
"""The 503 of readiness, which is no error."""


def methods_of(path: str) -> list[str]:
    """The methods that a path of a URL has here; none for the documents for people."""
    routes = (route.split(" ") for route in OPERATIONS)
    return [method for method, template in routes if re.fullmatch(_IN_PATH.sub("[^/]+", template), path)]
