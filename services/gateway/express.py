"""A usual inference, from its bytes to its answer, as calls back: no task, no context, one object a request.

The same steps in the same order as `routes_infer`, which says what they mean, for what nearly every request is: a small
whole body with nothing unusual about it (`heads`). What turns out to be unusual on the way goes back, before anything
has happened, and `routes_infer` begins again: `begin` says no. What takes longer than a call (an expiry, a claim for a
client that has gone) is a task, which is the exception. A task a request, its context managers, and the layers of an
application that has thirty routes cost more than everything else that a gateway does for one.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final

from services.gateway import answers, claimed_outputs, claims, encodings, infer
from services.gateway.connection import Answered
from shared import logs, oip
from shared.api_keys import tenant_of
from shared.errors import AiaasError, Overloaded, Stopping

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.responses import Response

    from services.gateway.admission import Place
    from services.gateway.express_connection import ExpressConnection
    from services.gateway.gateway import Gateway
    from services.gateway.heads import Head
    from services.gateway.request_log import Written
    from shared.oip import InferenceRequest
    from shared.results import Result

_BY_WORKERS: Final = ("succeeded", "failed")
_OK: Final = 200
_NO_REQUEST: Final = oip.InferenceRequest(())


def _new_id() -> str:
    """A random UUID (RFC 9562, version 4): as `uuid.uuid4` makes them, without the object between."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


class _Unusual(Exception):
    """It goes the usual way after all."""


class Express:
    """What the inferences of one gateway share."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.stall_timeout_s = gateway.settings.stall_timeout_s
        self.deadlines = gateway.deadlines
        self._tasks: set[asyncio.Task[None]] = set()

    def inference(self, connection: ExpressConnection, head: Head) -> Inference:
        """One that has not begun."""
        return Inference(self, self._gateway, connection, head)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes longer than a call."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for that."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _WaitedFor:
    """An inference's record on its way into the log: to `RequestLog` it is whoever waits for that."""

    __slots__ = ("_error", "_inference", "_waiting", "_written", "prepared")

    def __init__(self, inference: Inference, prepared: infer.Prepared) -> None:
        self._inference: Inference | None = inference
        self.prepared = prepared
        self._written: Written | None = None
        self._error: BaseException | None = None
        self._waiting: asyncio.Future[Written] | None = None

    def done(self) -> bool:
        return self._written is not None or self._error is not None

    def set_result(self, written: Written) -> None:
        self._written = written
        if self._inference is not None:
            self._inference.written(self.prepared.topic, written)
        self._inference = None  # nothing more to be told: each is freed with its last reference, not by the collector
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(written)

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        if self._inference is not None:
            self._inference.set_exception(error)
            self._inference = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    async def written(self) -> Written:
        """Where the record lies, once that is known.

        Raises:
            LogUnavailable: it is not acknowledged.
        """
        if self._error is not None:
            raise self._error
        if self._written is not None:
            return self._written
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._waiting)


class Inference:
    """One request. To `ReplyWaiter` and `Gateway` it is whoever waits for a result, as a future would be."""

    __slots__ = (
        "_began_s",
        "_body_bytes",
        "_call",
        "_code",
        "_connection",
        "_express",
        "_gateway",
        "_head",
        "_id",
        "_over",
        "_place",
        "_request",
        "_result",
        "_slot",
        "_waited_for",
    )

    def __init__(self, express: Express, gateway: Gateway, connection: ExpressConnection, head: Head) -> None:
        self._express = express
        self._gateway = gateway
        self._connection = connection
        self._head = head
        self._began_s = time.perf_counter()
        self._id = _new_id()
        self._over = False
        self._body_bytes = 0
        self._place: Place | None = None
        self._slot: int | None = None
        self._call: infer.Call | None = None
        self._request = _NO_REQUEST
        self._waited_for: _WaitedFor | None = None
        self._result: Result | None = None
        self._code: str | None = None

    # ------------------------------------------------------------------ in

    def begin(self, body: bytes) -> bool:
        """Append the request, or refuse it; False if it is not for here, and then nothing has happened."""
        self._gateway.in_flight += 1
        try:
            self._enqueue(body)
        except _Unusual:
            self._over = True
            self._let_go()
            return False
        except AiaasError as err:
            self._connection.begun()
            self._fail(err)
        except Exception:  # noqa: BLE001 - the last rung: a bug is logged, and the caller still gets an answer
            self._connection.begun()
            self._fail(self._bug())
        else:
            self._connection.begun()
        return True

    def _enqueue(self, body: bytes) -> None:
        gateway, head = self._gateway, self._head
        backbone, settings, headers = gateway.backbone, gateway.settings, head.headers
        tenant = tenant_of(headers, settings.api_keys)
        if gateway.quotas.has(tenant) or not backbone.topics.has(head.model) or len(body) > settings.max_body_bytes:
            raise _Unusual
        traceparent, span = infer.traceparent_of(headers), None
        if gateway.spans is not None:
            span = gateway.spans.begin(head.model, self._id, traceparent)
            traceparent = span.traceparent
        call = infer.Call(self._id, head.model, head.version, tenant, traceparent, span=span)
        self._call = call
        version = infer.route(gateway, call)
        self._take_place(len(body)).has_read(body)
        request = oip.decode_request(headers.get("content-type"), body, infer.header_length_of(headers))
        self._confirm_place(request)
        infer.check_fits(gateway, version, request)
        if claims.has_large(request, backbone.store, settings):
            raise _Unusual
        self._request = oip.InferenceRequest((), request.outputs, request.id, request.parameters)
        self._append(call, infer.prepare(gateway, call, request, settings.instance))

    def _append(self, call: infer.Call, prepared: infer.Prepared) -> None:
        """From here on somebody waits."""
        gateway = self._gateway
        self._waited_for = _WaitedFor(self, prepared)
        gateway.backbone.waiter.expect(call.model, call.id, self)
        gateway.begin_wait(self)
        self._slot = gateway.deadlines.add(prepared.deadline_s, self, self._expire)
        if call.span is not None:
            call.span.appended()
        gateway.backbone.requests.append(
            prepared.topic, call.id.encode(), prepared.value, prepared.headers, self._waited_for
        )

    def _take_place(self, body_bytes: int) -> Place:
        admission = self._gateway.admission
        try:
            place = admission.request(self._head.model, high=None)
            place.take()
        except Overloaded as err:
            raise _Unusual from err  # the turnstile refuses it, if that is what there is to say
        self._place = place
        admission.grow(body_bytes)
        self._body_bytes = body_bytes
        return place

    def _confirm_place(self, request: InferenceRequest) -> None:
        if self._place is not None:
            timeout_s = infer.timeout_of(request, self._gateway.settings)
            self._place.confirm(high=infer.is_urgent(request), timeout_s=timeout_s)

    # ------------------------------------------------------------------ the wait, and how it ends

    def done(self) -> bool:
        """Whether nobody waits any more."""
        return self._over

    def written(self, topic: str, where: Written) -> None:
        """Its record is in the log."""
        if self._call is not None and self._call.span is not None:
            self._call.span.written(topic, where)

    def set_result(self, result: Result) -> None:
        """The answer has come."""
        if self._over:
            return
        if self._place is not None:
            self._place.answered = result.status in _BY_WORKERS
        self._result = result
        try:
            self._answer_with(result)
        except AiaasError as err:  # JSON can't carry these outputs
            self._fail(err)
        except Exception:  # noqa: BLE001 - as in `begin`; who tells the results has more of them to tell
            self._fail(self._bug())

    def _answer_with(self, result: Result) -> None:
        if result.status != "succeeded":
            self._code = (result.error or {}).get("code")
            self._answer(answers.of_result(result, self._request))
            return
        if claimed_outputs.any_in(result):
            self._hand_over(result)
            return
        body, headers = answers.success(result, self._request)
        if encodings.may_encode(body, self._head.headers.get("accept-encoding")):
            self._hand_over(result)
        else:
            self._send(_OK, b"".join([b"%s: %s\r\n" % header for header in headers]), body)

    def set_exception(self, error: BaseException) -> None:
        """There will be none, or none that is waited for."""
        if self._over:
            return
        self._fail(error if isinstance(error, AiaasError) else AiaasError("the gateway failed; its log says why"))
        if isinstance(error, Stopping):
            self._express.run(self._make_known())  # it runs on: who asks for it by id must not hear of nothing

    def lost(self) -> None:
        """The client has closed its connection."""
        if self._over:
            return
        self._code = "client_gone"
        self._end(answers.CLIENT_GONE)
        self._express.run(self._make_known())

    def _expire(self) -> None:
        self._express.run(self._offer_expired())

    async def _offer_expired(self) -> None:
        try:
            result = await infer.expire(self._gateway.backbone, await self._acknowledged())
        except AiaasError as err:
            self.set_exception(err)
        except Exception:  # noqa: BLE001 - as in `begin`
            self.set_exception(self._bug())
        else:
            self.set_result(result)

    async def _make_known(self) -> None:
        try:
            await infer.make_known(self._gateway.backbone, await self._acknowledged())
        except AiaasError as err:
            logs.get().warning("a request is known by its id only later", error=err.message, request_id=self._id)

    async def _acknowledged(self) -> infer.Accepted:
        """The request as Kafka has it.

        Raises:
            LogUnavailable: Kafka did not acknowledge it.
        """
        if self._waited_for is None or self._call is None:
            raise AssertionError("only what was appended is waited for")
        return infer.accepted(self._call, self._waited_for.prepared, await self._waited_for.written())

    # ------------------------------------------------------------------ out

    def _bug(self) -> AiaasError:
        """Log what is being handled; what to say of it."""
        logs.get().exception("a bug in the express lane", request_id=self._id)
        return AiaasError("the gateway failed; its log says why")

    def _fail(self, err: AiaasError) -> None:
        if self._over:
            return
        self._code = err.code
        self._answer(answers.of_error(err))

    def _answer(self, response: Response) -> None:
        lines = [b"%s: %s\r\n" % header for header in response.raw_headers if header[0] != b"content-length"]
        self._send(response.status_code, b"".join(lines), bytes(response.body))

    def _send(self, status: int, headers: bytes, body: bytes) -> None:
        self._end(status)
        self._connection.answer(status, headers + b"x-request-id: %s\r\n" % self._id.encode(), body)

    def _hand_over(self, result: Result) -> None:
        if self._connection.transport.is_closing():
            self.lost()
            return
        self._over = True
        self._let_go()
        call = self._call
        tenant, trace_id = (None, None) if call is None else (call.tenant, logs.trace_id(call.traceparent))
        if call is not None and call.span is not None:
            call.span.ended(_OK, None)  # what is left is to send it
        self._connection.hand_over(Answered(self._id, self._request, result, tenant, trace_id, self._began_s))

    def _end(self, status: int) -> None:
        self._over = True
        self._let_go()
        self._gateway.answered[status] += 1
        if self._call is not None and self._call.span is not None:
            self._call.span.ended(status, self._code)
        logs.canonical("inference", [self._line(status)])

    def _line(self, status: int) -> dict[str, Any]:
        call, result = self._call, self._result
        return {
            "status": status,
            "duration_ms": round((time.perf_counter() - self._began_s) * 1000, 3),
            "request_id": self._id,
            "model": self._head.model,
            "tenant": call and call.tenant,
            "trace_id": call and logs.trace_id(call.traceparent),
            "version": result and result.model_version,
            "outcome": result and result.status,
            "code": self._code,
        }

    def _let_go(self) -> None:
        """Of all that is held for it."""
        gateway = self._gateway
        gateway.in_flight -= 1
        if self._place is not None:
            self._place.leave()
        gateway.admission.shrink(self._body_bytes)
        if self._slot is not None and self._call is not None:
            gateway.deadlines.discard(self._slot, self)
            gateway.end_wait(self)
            gateway.backbone.waiter.forget(self._call.model, self._call.id, self)
