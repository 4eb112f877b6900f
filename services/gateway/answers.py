"""Answers as HTTP: the one table from error codes to statuses, error bodies, and results as the caller asked for them.

An error's body is `{"error": sentence, "code": code}`; OIP clients read the first, programs the second. 429 and 503
always say when to try again. 499 is only logged: the client had gone.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.responses import Response

from services.gateway.paths import requests_url
from shared import oip, oip_response
from shared.errors import LEAST_RETRY_AFTER_S, AiaasError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from services.gateway.request_state import RequestState
    from shared.oip import InferenceRequest
    from shared.results import Result

CLIENT_GONE: Final = 499
UNAVAILABLE: Final = 503
_TOO_MANY: Final = 429
TRY_AGAIN: Final = (_TOO_MANY, UNAVAILABLE)
"""Statuses that say when."""

STATUS_OF_CODE: Final = {
    "invalid_input": 400,
    "invalid_id": 400,
    "unsupported": 400,
    "digest_mismatch": 400,
    "artifact_not_found": 400,  # the caller's claim check names nothing
    "unauthorized": 401,
    "unknown_model": 404,
    "unknown_version": 404,
    "unknown_request": 404,
    "unknown_export": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "stalled": 408,
    "conflict": 409,
    "id_conflict": 409,
    "duplicate_unresolved": 409,
    "cancelled": 409,
    "model_retired": 410,
    "too_large": 413,
    "unsupported_encoding": 415,
    "model_rejected": 422,
    "quota_exceeded": _TOO_MANY,
    "not_ready": UNAVAILABLE,
    "not_loaded": UNAVAILABLE,
    "unfinished": UNAVAILABLE,
    "overloaded": UNAVAILABLE,
    "log_unavailable": UNAVAILABLE,
    "replies_unavailable": UNAVAILABLE,
    "store_unavailable": UNAVAILABLE,
    "stopping": UNAVAILABLE,
    "deadline_exceeded": 504,
    "run_timeout": 504,
    "execution_failed": 500,
    "worker_crashed": 500,
}
"""Any other code is 500."""


class JsonResponse(Response):
    """A body that orjson prints: raw JSON within it (`orjson.Fragment`) is not parsed again."""

    media_type = oip.JSON

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return orjson.dumps(content)


def error(code: str, message: str, retry_after_s: int = LEAST_RETRY_AFTER_S) -> Response:
    """An error, its status by its code."""
    status = STATUS_OF_CODE.get(code, 500)
    headers = {}
    if status in TRY_AGAIN:
        headers["retry-after"] = str(retry_after_s)
    if code == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    return JsonResponse({"error": message, "code": code}, status_code=status, headers=headers)


def method_not_allowed(message: str, methods: Iterable[str]) -> Response:
    """405, with the methods that the path has."""
    response = error("method_not_allowed", message)
    response.headers["allow"] = ", ".join(methods)
    return response


def raw(response: Response, more_headers: bytes = b"") -> bytes:
    """The response as HTTP/1.1 sends it, for who answers below the application."""
    head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers) + more_headers
    phrase = HTTPStatus(response.status_code).phrase.encode()
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (response.status_code, phrase, head, response.body)


def of_error(err: AiaasError) -> Response:
    """A failure of the platform's."""
    if isinstance(err, Unavailable):
        return error(err.code, err.message, err.retry_after_s)
    return error(err.code, err.message)


def of_result(result: Result, request: InferenceRequest) -> Response:
    """The outcome of an inference: outputs in JSON or behind a JSON header, as `request` asked, or the error.

    Raises:
        InvalidInput: a BYTES output is not UTF-8 and was asked for in JSON.
    """
    if result.status != "succeeded":
        return error(*_failure(result))
    body, headers = success(result, request)
    response = Response(body)
    response.raw_headers = [*headers, (b"content-length", str(len(body)).encode())]
    return response


def success(result: Result, request: InferenceRequest) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Body and headers for outputs, all of which are here; raises as `of_result`."""
    version = result.model_version or 0
    binary = oip_response.binary_outputs(request, [tensor.name for tensor in result.outputs if not tensor.claimed])
    if not binary:
        body = oip_response.encode_json(
            model_name=result.model_name, model_version=version, outputs=result.outputs, echo_id=request.id
        )
        return body, [(b"content-type", oip.JSON.encode())]
    body, header_length = oip_response.encode_binary(
        model_name=result.model_name, model_version=version, outputs=result.outputs, echo_id=request.id, binary=binary
    )
    length = str(header_length).encode()
    return body, [(b"content-type", oip.BINARY.encode()), (b"inference-header-content-length", length)]


def state_of(model: str, request_id: str, state: RequestState) -> dict[str, Any]:
    """A request as `GET …/requests/{id}` shows it; `status` is null until it has ended."""
    result = state.result
    view: dict[str, Any] = {
        "id": request_id,
        "model_name": model,
        "state": state.state,
        "queue_position": state.queue_position,
        "status": None if result is None else result.status,
        "result": None,
        "error": None,
    }
    if result is None:
        return view
    if result.status != "succeeded":
        return view | {"error": dict(zip(("code", "message"), _failure(result), strict=True))}
    try:
        body = oip_response.encode_json(
            model_name=model, model_version=result.model_version or 0, outputs=result.outputs
        )
    except AiaasError as err:  # it succeeded all the same; JSON can't carry these outputs
        return view | {"error": {"code": err.code, "message": err.message}}
    return view | {"result": orjson.Fragment(body)}


def accepted(model: str, request_id: str, answered: Result | None, applied: str) -> Response:
    """202 for a request that the caller asks for later; `applied` is which preference this follows."""
    url = requests_url(model, request_id)
    return JsonResponse(
        {"id": request_id, "state": answered.status if answered else "queued", "status_url": url},
        status_code=202,
        headers={"location": url, "preference-applied": applied},
    )


_BY_STATUS: Final = {"expired": "deadline_exceeded", "cancelled": "cancelled"}


def _failure(result: Result) -> tuple[str, str]:
    """Code and sentence of a result that did not succeed."""
    told: Mapping[str, str] = result.error or {}
    code = told.get("code") or _BY_STATUS.get(result.status, AiaasError.code)
    return code, told.get("message") or f"the request {result.status}"
