"""`POST /v2/models/{model}[/versions/{version}]/infer`: decode, call `infer`, encode.

A plain ASGI application below FastAPI: no body model, no dependency injection. It takes every request; most are usual
in every way, and `express` has answered them before they come here. Every answer has the header `x-request-id`, and
every request one canonical log line.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from services.gateway import (
    answers,
    bodies,
    claimed_outputs,
    claims,
    connection,
    encodings,
    idempotency,
    infer,
    preferences,
)
from services.gateway.bodies import ClientGone
from services.gateway.client import Client
from services.gateway.heads import SMALL_BYTES
from services.gateway.paths import version_of
from shared import logs, oip
from shared.api_keys import tenant_of
from shared.errors import AiaasError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from services.gateway.admission import BodyBudget, Place
    from services.gateway.gateway import Gateway
    from shared.oip import InferenceRequest
    from shared.results import Result

PATH: Final = re.compile(r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/infer")
_SPAN: Final = "aiaas.span"
"""Of the scope: the request's span, where requests are traced."""
_LONG_BYTES: Final = 256 * 1024
_BY_WORKERS: Final = ("succeeded", "failed")


class InferRoute:
    """The infer endpoint of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._log = logs.get()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever comes of it."""
        began_s = _began_s(scope)
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
        if (span := scope.get(_SPAN)) is not None:
            span.ended(response.status_code, line.get("code"))
        duration_ms = round((time.perf_counter() - began_s) * 1000, 3)
        logs.canonical("inference", [{"status": response.status_code, "duration_ms": duration_ms, **line}])

    async def _answer(self, scope: Scope, receive: Receive, line: dict[str, Any]) -> Response:
        """The answer; `line` collects what the log should say."""
        if scope["method"] != "POST":
            return answers.method_not_allowed("infer is a POST", ["POST"])
        client = Client(scope, receive)
        headers = client.headers
        if (known := client.answered) is not None:
            line |= {"request_id": known.id, "tenant": known.tenant, "trace_id": known.trace_id}
            response = await self._answered(known.result, known.request, line)
            return await encodings.encode(response, headers.get("accept-encoding"))
        tenant = tenant_of(headers, self._gateway.settings.api_keys)
        traceparent = infer.traceparent_of(headers)
        span = None
        if self._gateway.spans is not None:
            span = scope[_SPAN] = self._gateway.spans.begin(line["model"], line["request_id"], traceparent)
            traceparent = span.traceparent
        line |= {"tenant": tenant, "trace_id": logs.trace_id(traceparent)}
        model, version = line["model"], version_of(scope["path_params"].get("version"), line["model"])
        keyed = idempotency.HEADER in headers
        if keyed:
            key = idempotency.key_of(headers[idempotency.HEADER])
            line["request_id"] = idempotency.request_id(tenant, model, key)
        call = infer.Call(line["request_id"], model, version, tenant, traceparent, keyed, span)
        infer.route(self._gateway, call)  # before its body is read
        with self._gateway.admission.request(model, high=None if _is_small(headers) else False) as place:
            await self._gateway.quotas.spend(tenant, self._gateway.backbone.replies)
            if "prefer" in headers and (wait_s := preferences.respond_async(headers["prefer"])) is not None:
                response = await self._later(call, client, line, wait_s, place)
            else:
                response = await self._now(call, client, line, place)
        return await encodings.encode(response, headers.get("accept-encoding"))

    async def _now(self, call: infer.Call, client: Client, line: dict[str, Any], place: Place) -> Response:
        """Enqueue, wait, answer."""
        with self._gateway.backbone.waiter.expected(call.model, call.id) as answer:
            request, accepted = await self._enqueued(call, client, self._gateway.settings.instance, place)
            result = await infer.outcome(self._gateway, accepted, answer, client)
        place.answered = result.status in _BY_WORKERS
        return await self._answered(result, request, line)

    async def _later(
        self, call: infer.Call, client: Client, line: dict[str, Any], wait_s: int, place: Place
    ) -> Response:
        """Enqueue, and say where to ask, unless the answer comes within the time that the caller would wait."""
        result = None
        with self._gateway.backbone.waiter.expected(call.model, call.id) as answer:
            request, accepted = await self._enqueued(call, client, self._gateway.settings.instance, place)
            await infer.make_known(self._gateway.backbone, accepted)
            if wait_s:
                result = await infer.soon(self._gateway, accepted, answer, client, wait_s)
        if result is not None:
            return await self._answered(result, request, line)
        return answers.accepted(call.model, call.id, accepted.answered, preferences.applied(wait_s))

    async def _answered(self, result: Result, request: InferenceRequest, line: dict[str, Any]) -> Response:
        gateway = self._gateway
        line |= {"version": result.model_version, "outcome": result.status, "code": (result.error or {}).get("code")}
        if claimed_outputs.any_in(result):
            return await claimed_outputs.answer(
                result, request, gateway.backbone.store, gateway.settings, gateway.admission
            )
        return answers.of_result(result, request)

    async def _enqueued(
        self, call: infer.Call, client: Client, reply_channel: str | None, place: Place
    ) -> tuple[InferenceRequest, infer.Accepted]:
        """Read, decode and append the request; its body is let go when Kafka has it."""
        settings = self._gateway.settings
        with self._gateway.admission.body() as budget:
            if claims.is_streamed(client.headers, settings.claim_bytes):
                request = await self._streamed(call, client, place, budget)
            else:
                body = await bodies.read(
                    client.receive,
                    client.headers,
                    limit_bytes=settings.max_body_bytes,
                    stall_timeout_s=None if client.has_sent_all else settings.stall_timeout_s,
                    take=budget.take,
                )
                place.has_read(body)
                request = await _decoded(client.headers, body)
                self._confirm(request, place)
            accepted = await infer.enqueue(self._gateway, call, request, reply_channel)
        return oip.InferenceRequest((), request.outputs, request.id, request.parameters), accepted

    async def _streamed(self, call: infer.Call, client: Client, place: Place, budget: BodyBudget) -> InferenceRequest:
        """A binary body whose large tensors go to the store as they arrive, when its header has been looked at."""
        backbone, settings = self._gateway.backbone, self._gateway.settings
        body = claims.Body(
            bodies.inflated(
                client.receive,
                client.headers,
                limit_bytes=settings.max_binary_body_bytes,
                stall_timeout_s=settings.stall_timeout_s,
            )
        )
        length = infer.header_length_of(client.headers) or 0
        budget.take(min(length, settings.max_body_bytes))
        header = await body.header(length, settings.max_body_bytes)
        place.has_read(header)
        announced = oip.decode_header(header)
        self._confirm(announced.request, place)
        infer.check_fits(self._gateway, infer.route(self._gateway, call), announced.request)
        return await claims.arrived(body, announced, backbone.store, settings, budget.take)

    def _confirm(self, request: InferenceRequest, place: Place) -> None:
        place.confirm(high=infer.is_urgent(request), timeout_s=infer.timeout_of(request, self._gateway.settings))


def _began_s(scope: Scope) -> float:
    """When the request came: now, unless it had its result before."""
    known = connection.of(scope)
    answered = None if known is None else known.answered
    return time.perf_counter() if answered is None else answered.began_s


async def _decoded(headers: Mapping[str, str], body: bytes) -> InferenceRequest:
    """The body as a request. A long one on a thread: the loop gets its turns between the steps."""
    how = headers.get("content-type"), body, infer.header_length_of(headers)
    if len(body) <= _LONG_BYTES:
        return oip.decode_request(*how)
    return await asyncio.to_thread(oip.decode_request, *how)


def _is_small(headers: Mapping[str, str]) -> bool:
    """Whether the body may be read just to learn its priority."""
    length = headers.get("content-length", "")
    return length.isdecimal() and int(length[:20]) <= SMALL_BYTES
