"""One inference: validated, appended to the log, waited for.

`enqueue` takes a request to the point from which it has exactly one outcome: Kafka's acknowledgement. Whatever is
wrong before that is told to the caller and nobody else. `outcome` waits for the answer; at the deadline it offers
`expired` through the same arbiter as the workers, and whichever answer came first is the answer.

A request whose acknowledgement did not come in time may be in the log all the same. The caller is told 503 and keeps
the id; it will have an outcome if it was appended, and none if it was not.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.gateway import claims, idempotency
from services.gateway.bodies import ClientGone
from services.gateway.client import end
from services.gateway.readiness import check_engine
from shared import logs, processed_signature
from shared.errors import DeadlineExceeded, InvalidInput, RepliesUnavailable, Stopping, TooLarge
from shared.oip import encode_request_msgpack
from shared.replies import Claim
from shared.requests import RequestHeaders
from shared.results import Result
from shared.runtime_config import ONNXRUNTIME
from shared.topics import MAX_RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from services.gateway.client import Client
    from services.gateway.gateway import Backbone, Gateway
    from services.gateway.request_log import Written
    from services.gateway.request_spans import RequestSpan
    from services.gateway.settings import GatewaySettings
    from shared.codec import Headers
    from shared.oip import InferenceRequest
    from shared.registry import Version

_US_PER_S: Final = 1_000_000
_TRACEPARENT_CHARS: Final = 55
_MAX_FORMS: Final = 1024


@dataclass(frozen=True, slots=True)
class Call:
    """An inference as it was asked for over HTTP, before its body. `version` None leaves the choice to the registry."""

    id: str
    model: str
    version: int | None
    tenant: str | None
    traceparent: str | None
    keyed: bool = False
    """Whether an `Idempotency-Key` made the id: the request may be in the log already."""
    span: RequestSpan | None = None
    """Where it is traced."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that Kafka acknowledged. `deadline_s` is on the event loop's clock."""

    call: Call
    claim: Claim | None
    """Its record; None if that is forgotten already, and its answer is not."""
    answered: Result | None
    """Its answer, if it is a repeat that came after that."""
    deadline_s: float


def timeout_of(request: InferenceRequest, settings: GatewaySettings) -> float:
    """Seconds until the request's deadline: its `timeout` parameter, in µs, 0 being none, up to the configured most.

    Raises:
        InvalidInput: the parameter is no whole number from 0.
    """
    timeout_us = request.parameters.get("timeout", 0)
    if type(timeout_us) is not int or timeout_us < 0:
        raise InvalidInput(f"parameter timeout is {timeout_us!r}, not a whole number of microseconds")
    return min(timeout_us / _US_PER_S or settings.request_timeout_s, settings.max_request_timeout_s)


def traceparent_of(headers: Mapping[str, str]) -> str | None:
    """The caller's W3C `traceparent`, if it is one: what is passed on is bounded and ASCII."""
    value = headers.get("traceparent")
    if value is None or len(value) != _TRACEPARENT_CHARS or not value.isascii() or not logs.trace_id(value):
        return None
    return value


def header_length_of(headers: Mapping[str, str]) -> int | None:
    """How long the JSON header of a binary body is, if it has one.

    Raises:
        InvalidInput: the header that says so is no number.
    """
    length = headers.get("inference-header-content-length")
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal()):
        raise InvalidInput(f"Inference-Header-Content-Length is {length[:40]!r}, not a number of bytes")
    return int(length[:20])


def is_urgent(request: InferenceRequest) -> bool:
    """Whether the request goes before others: its `priority` parameter is 1, the highest as Triton counts them."""
    return request.parameters.get("priority") == 1


def route(gateway: Gateway, call: Call) -> Version:
    """The version that would answer now.

    Raises:
        UnknownModel, UnknownVersion, ModelNotReady, ModelRejected, ModelRetired: nothing does.
    """
    return gateway.backbone.log.registry.route(call.model, call.id, call.version)


def check_fits(gateway: Gateway, version: Version, request: InferenceRequest) -> None:
    """Hold a request, its tensors there or not, against the version that would answer it.

    Whether it fits depends on its form alone, and most requests have few forms: those that fit are remembered.

    Raises:
        InvalidInput: it does not.
        ModelNotReady: it needs an engine that no live worker has.
    """
    variant = version.serving
    if variant.engine != ONNXRUNTIME:
        check_engine(version, gateway.backbone.heartbeats.alive())
    form = (
        variant.key,
        tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs]),
        tuple([(output.name, *output.parameters) for output in request.outputs]),
    )
    if gateway.fitting.get(form) is not variant.signature:
        processed_signature.validate(request, variant.signature, variant.processing)
        if len(gateway.fitting) >= _MAX_FORMS:
            gateway.fitting.clear()
        gateway.fitting[form] = variant.signature


async def enqueue(gateway: Gateway, call: Call, request: InferenceRequest, reply_channel: str | None) -> Accepted:
    """Append the request to its model's topic; returns when Kafka has acknowledged it.

    Raises:
        UnknownModel, UnknownVersion, ModelNotReady, ModelRejected, ModelRetired: nothing serves it now.
        InvalidInput, TooLarge: it can't be run, or not be carried.
        StoreUnavailable: its tensors are too large for a record, and the store failed.
        IdConflict: its key was used for another request.
        RepliesUnavailable: there would be no way back for the answer.
        LogUnavailable: Kafka did not acknowledge in time.
    """
    backbone, settings = gateway.backbone, gateway.settings
    check_fits(gateway, route(gateway, call), request)
    request = await claims.portable(request, backbone.store, settings)
    prepared = prepare(gateway, call, request, reply_channel)
    if call.keyed and (first := await idempotency.join(backbone.replies, call, prepared.value, prepared.timeout_s)):
        return Accepted(call, *first, prepared.deadline_s)
    await backbone.topics.ensure(call.model, settings.produce_timeout_s)
    if call.span is not None:
        call.span.appended()
    written = await backbone.requests.appended(prepared.topic, call.id.encode(), prepared.value, prepared.headers)
    if call.span is not None:
        call.span.written(prepared.topic, written)
    appended = accepted(call, prepared, written)
    if call.keyed and appended.claim is not None:  # a repeat that finds its owner need not be appended
        owner = await backbone.replies.claim(call.model, call.id, appended.claim)
        return Accepted(call, owner, None, prepared.deadline_s)
    return appended


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as it will be appended. `deadline_s` is on the event loop's clock."""

    topic: str
    value: bytes
    headers: Headers
    timeout_s: float
    deadline_s: float


def prepare(gateway: Gateway, call: Call, request: InferenceRequest, reply_channel: str | None) -> Prepared:
    """Make the record of a request that fits, and can be carried.

    Raises:
        TooLarge, RepliesUnavailable, InvalidInput: as `enqueue`.
    """
    settings, registry = gateway.settings, gateway.backbone.log.registry
    value = encode_request_msgpack(request)
    if len(value) > MAX_RECORD_BYTES:
        raise TooLarge(f"the request makes a record of {len(value)} bytes, above the limit of {MAX_RECORD_BYTES}")
    if not gateway.backbone.waiter.healthy:
        raise RepliesUnavailable("Redis does not answer: nothing is accepted until it does")
    timeout_s = timeout_of(request, settings)
    headers = RequestHeaders(
        request_id=call.id,
        deadline_ms=int((time.time() + timeout_s) * 1000),
        model_version=call.version,
        tenant=call.tenant,
        reply_channel=reply_channel,
        registry_offset=registry.offset if registry.offset >= 0 else None,
        traceparent=call.traceparent,
    )
    topic = gateway.topics.requests(call.model, high=is_urgent(request))
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    return Prepared(topic, value, headers.to_kafka(settings.instance), timeout_s, deadline_s)


def accepted(call: Call, prepared: Prepared, written: Written) -> Accepted:
    """What Kafka has acknowledged."""
    digest = hashlib.sha256(prepared.value).hexdigest()
    claim = Claim(prepared.topic, written.partition, written.offset, call.tenant, digest)
    return Accepted(call, claim, None, prepared.deadline_s)


async def make_known(backbone: Backbone, accepted: Accepted) -> None:
    """Let every gateway know the id before a worker has met the record.

    Raises:
        RepliesUnavailable: Redis did not take it. The request runs all the same.
    """
    if accepted.claim is not None:
        await backbone.replies.claim(accepted.call.model, accepted.call.id, accepted.claim)


async def outcome(gateway: Gateway, accepted: Accepted, answer: asyncio.Future[Result], client: Client) -> Result:
    """Wait for the answer, but not beyond the deadline, the client's presence, or the end of the drain.

    Raises:
        ClientGone: the client closed its connection.
        Stopping: the gateway shuts down.
        RepliesUnavailable: the wait ended without an answer, and Redis does not take or tell what is known.
    """
    if accepted.answered is not None:
        return accepted.answered
    with gateway.waiting(answer), client.watched(answer), _until(gateway, accepted.deadline_s, answer):
        try:
            return await answer
        except TimeoutError:
            return await expire(gateway.backbone, accepted)
        except (ClientGone, Stopping):
            await make_known(gateway.backbone, accepted)  # it runs on: who asks for it by id must not hear of nothing
            raise


async def soon(
    gateway: Gateway, accepted: Accepted, answer: asyncio.Future[Result], client: Client, wait_s: float
) -> Result | None:
    """The answer if it is there within `wait_s` or by the deadline, whichever is first, else None: asked for later.

    Raises:
        ClientGone, RepliesUnavailable: as `outcome`.
    """
    until_s = asyncio.get_running_loop().time() + wait_s
    try:
        if accepted.answered is not None or until_s >= accepted.deadline_s:
            return await outcome(gateway, accepted, answer, client)
        with gateway.waiting(answer), client.watched(answer), _until(gateway, until_s, answer):
            return await answer
    except (TimeoutError, Stopping):
        return None


@contextmanager
def _until(gateway: Gateway, time_s: float, answer: asyncio.Future[Result]) -> Iterator[None]:
    """End the wait with `TimeoutError` at a time of the event loop's clock."""
    slot = gateway.deadlines.add(time_s, answer, lambda: end(answer, TimeoutError()))
    try:
        yield
    finally:
        gateway.deadlines.discard(slot, answer)


async def expire(backbone: Backbone, accepted: Accepted) -> Result:
    """Offer `expired` as the answer; returns the one that counts."""
    call = accepted.call
    late = DeadlineExceeded("the deadline passed before an answer came")
    expired = Result(
        id=call.id, status="expired", model_name=call.model, error={"code": late.code, "message": late.message}
    )
    await make_known(backbone, accepted)
    [winner] = await backbone.replies.put([expired])
    return winner
