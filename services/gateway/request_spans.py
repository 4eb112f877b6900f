"""Spans of a request at the gateway: the call itself, its way into the log, and the wait for its answer.

    POST /v2/models/{model}/infer   server      from the request's bytes to its answer
      send                          producer    from the append to Kafka's acknowledgement
      await reply                   client      from there until Redis told the answer

The record's `traceparent` is that of the first, so the worker's spans (`services.worker.job_spans`) are its children
beside these two. A request that is passed on from one lane to the other begins again there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.gateway.request_log import Written
    from shared.tracing import Span, Tracing

_SERVER_ERROR: Final = 500


class RequestSpan:
    """The span of one request, open until it is answered."""

    __slots__ = ("_appended_ns", "_span", "_written_ns", "traceparent")

    def __init__(self, span: Span) -> None:
        self._span = span
        self.traceparent = span.traceparent
        self._appended_ns = 0
        self._written_ns = 0

    def appended(self) -> None:
        """Its record is on its way to Kafka."""
        self._appended_ns = time.time_ns()

    def written(self, topic: str, where: Written) -> None:
        """Kafka has acknowledged its record."""
        if not self._span.sampled:
            return
        self._written_ns = time.time_ns()
        about = {
            "messaging.system": "kafka",
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
            "messaging.destination.partition.id": str(where.partition),
            "messaging.kafka.offset": where.offset,
        }
        self._span.child(f"send {topic}", self._appended_ns, self._written_ns, about, "producer")

    def ended(self, status: int, code: str | None) -> None:
        """It is answered with an HTTP status; `code` is that of an error."""
        if not self._span.sampled:
            return
        now_ns = time.time_ns()
        if self._written_ns:
            self._span.child("await reply", self._written_ns, now_ns, {"db.system.name": "redis"}, "client")
        error = code or str(status) if status >= _SERVER_ERROR else None
        self._span.end(now_ns, {"http.response.status_code": status, "aiaas.error.code": code}, error)


class RequestSpans:
    """Begins the spans of one gateway's requests."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def begin(self, model: str, request_id: str, traceparent: str | None) -> RequestSpan:
        """The span of a request, which its caller's `traceparent` may be the parent of."""
        about = {
            "http.request.method": "POST",
            "http.route": "/v2/models/{model}/infer",
            "aiaas.model.name": model,
            "messaging.message.id": request_id,
        }
        return RequestSpan(self._tracing.begin("POST /v2/models/{model}/infer", "server", traceparent, about))
