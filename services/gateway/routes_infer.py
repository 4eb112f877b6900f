"""`POST /v2/models/{model}[/versions/{version}]/infer`: decode, call `infer`, encode.

A plain ASGI application below FastAPI: no body model, no dependency injection, since this is the path whose
microseconds count. Every answer has the header `x-request-id`, and every request one canonical log line.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers
from starlette.responses import Response

from services.gateway import answers, bodies, infer
from services.gateway.auth import tenant_of
from services.gateway.bodies import ClientGone
from services.gateway.paths import requests_url, version_of
from shared import logs, oip
from shared.errors import AiaasError, InvalidInput

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from services.gateway.gateway import Gateway
    from shared.oip import InferenceRequest

PATHS: Final = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
_TRACEPARENT_CHARS: Final = 55


class InferRoute:
    """The infer endpoint of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._log = logs.get()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever comes of it."""
        started_s = time.perf_counter()
        line: dict[str, Any] = {"request_id": str(uuid.uuid4()), "model": scope["path_params"]["model"]}
        try:
            response = await self._answer(scope, receive, line)
        except AiaasError as err:
            line["code"] = err.code
            response = answers.of_error(err)
        except ClientGone:
            line["code"] = "client_gone"
            response = Response(status_code=answers.CLIENT_GONE)
        except Exception:  # noqa: BLE001 - the last rung: a bug is logged, and the caller still gets an answer
            line["code"] = AiaasError.code
            self._log.exception("a bug in the infer route", request_id=line["request_id"])
            response = answers.error(AiaasError.code, "the gateway failed; its log says why")
        response.headers["x-request-id"] = line["request_id"]
        await response(scope, receive, send)
        duration_ms = round((time.perf_counter() - started_s) * 1000, 3)
        self._log.info("inference", status=response.status_code, duration_ms=duration_ms, **line)

    async def _answer(self, scope: Scope, receive: Receive, line: dict[str, Any]) -> Response:
        """The answer; `line` collects what the log should say."""
        if scope["method"] != "POST":
            return answers.error("method_not_allowed", "infer is a POST")
        headers = Headers(scope=scope)
        tenant = tenant_of(headers, self._gateway.settings.api_keys)
        traceparent = _traceparent(headers)
        line |= {"tenant": tenant, "trace_id": logs.trace_id(traceparent)}
        model, version = line["model"], version_of(scope["path_params"].get("version"), line["model"])
        call = infer.Call(line["request_id"], model, version, tenant, traceparent)
        self._gateway.backbone.log.registry.route(model, call.id, version)  # before its body is read
        with self._gateway.admission.request(model):
            if _prefers_async(headers):
                return await self._later(call, headers, receive)
            return await self._now(call, headers, receive, line)

    async def _now(self, call: infer.Call, headers: Headers, receive: Receive, line: dict[str, Any]) -> Response:
        """Enqueue, wait, answer."""
        with self._gateway.backbone.waiter.expected(call.model, call.id) as answer:
            request, accepted = await self._enqueued(call, headers, receive, self._gateway.settings.instance)
            result = await infer.outcome(self._gateway, accepted, answer, receive)
        line |= {"version": result.model_version, "outcome": result.status, "code": (result.error or {}).get("code")}
        return answers.of_result(result, request)

    async def _later(self, call: infer.Call, headers: Headers, receive: Receive) -> Response:
        """Enqueue, and say where to ask."""
        _, accepted = await self._enqueued(call, headers, receive, None)
        await infer.make_known(self._gateway.backbone, accepted)
        url = requests_url(call.model, call.id)
        return answers.JsonResponse(
            {"id": call.id, "state": "queued", "status_url": url},
            status_code=202,
            headers={"location": url, "preference-applied": "respond-async"},
        )

    async def _enqueued(
        self, call: infer.Call, headers: Headers, receive: Receive, reply_channel: str | None
    ) -> tuple[InferenceRequest, infer.Accepted]:
        """Read, decode and append the request; its body is let go when Kafka has it."""
        settings = self._gateway.settings
        with self._gateway.admission.body() as budget:
            body = await bodies.read(
                receive,
                headers,
                limit_bytes=settings.max_body_bytes,
                stall_timeout_s=settings.stall_timeout_s,
                take=budget.take,
            )
            request = oip.decode_request(headers.get("content-type"), body, _header_length(headers))
            accepted = await infer.enqueue(self._gateway, call, request, reply_channel)
        return oip.InferenceRequest((), request.outputs, request.id, request.parameters), accepted


def _header_length(headers: Headers) -> int | None:
    length = headers.get("inference-header-content-length")
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal()):
        raise InvalidInput(f"Inference-Header-Content-Length is {length[:40]!r}, not a number of bytes")
    return int(length[:20])


def _prefers_async(headers: Headers) -> bool:
    """Whether `Prefer` (RFC 7240) asks for an answer now and the result later."""
    return any(
        preference.strip().lower() == "respond-async"
        for value in headers.getlist("prefer")
        for preference in value.split(",")
    )


def _traceparent(headers: Headers) -> str | None:
    """The caller's W3C `traceparent`, if it is one: what is passed on is bounded and ASCII."""
    value = headers.get("traceparent", "")
    return value if len(value) == _TRACEPARENT_CHARS and value.isascii() and logs.trace_id(value) else None
