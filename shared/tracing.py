"""Traces: spans by OpenTelemetry, exported by OTLP over HTTP, linked from service to service by `traceparent`.

Off unless `AIAAS_OTLP_ENDPOINT` (or OpenTelemetry's own `OTEL_EXPORTER_OTLP_ENDPOINT`) is set, and then nothing of
it is imported here: `started` gives None, and whoever would trace asks `is not None` once a request. On, it takes the
extra `otel`. Export is by a thread of the SDK's, in batches, from a bounded queue; what a collector does not take
in time is dropped, and no request waits for it.

A span's parent is a `traceparent` (https://www.w3.org/TR/trace-context/), not what runs around it: a request's steps
are calls back and other processes, and most of them are told when they are over. Whether a trace is kept is decided at
its beginning (`AIAAS_TRACE_RATIO`), and travels as the flag `sampled`: later services do as the first one did.
Attributes are named as OpenTelemetry's semantic conventions have them, where they have a name.

This is the one home of OpenTelemetry's packages. Which spans there are is the business of the services
(`services.gateway.request_spans`, `services.worker.job_spans`).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from shared import logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

    from shared.settings import PlatformSettings

Kind = Literal["internal", "server", "client", "producer", "consumer"]
_QUEUE: Final = 8192
"""Spans that wait to be exported; more are dropped."""
_BATCH: Final = 512
_EXPORT_TIMEOUT_S: Final = 5.0


class Span:
    """A span that has begun. It is exported when it has ended; one that never ends is none."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: OtelSpan) -> None:
        self._tracing = tracing
        self._span = span

    @property
    def sampled(self) -> bool:
        """Whether it will be exported: if not, nobody needs its attributes and children."""
        return self._span.is_recording()

    @property
    def traceparent(self) -> str:
        """What makes others its children."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def child(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, Any] | None = None,
        kind: Kind = "internal",
    ) -> None:
        """A step of it, between two moments in ns since the epoch."""
        self._tracing.begin(name, kind, self.traceparent, attributes, start_ns).end(end_ns)

    def end(
        self, end_ns: int | None = None, attributes: Mapping[str, Any] | None = None, error: str | None = None
    ) -> None:
        """It is over, now or at `end_ns`; `error` is the code of what went wrong."""
        if not self.sampled:
            return
        self._span.set_attributes(_known(attributes))
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._tracing.failed(self._span, error)
        self._span.end(end_ns)


class Tracing:
    """Begins spans of one service. Build it with `started`."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - who does not trace needs none of it
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - as above

        self._trace = trace
        self._tracer = provider.get_tracer("aiaas")
        self._extract = TraceContextTextMapPropagator().extract
        self._kinds = {kind.name.lower(): kind for kind in trace.SpanKind}
        self._root = trace.set_span_in_context(trace.INVALID_SPAN)

    def begin(
        self,
        name: str,
        kind: Kind,
        parent: str | None,
        attributes: Mapping[str, Any] | None = None,
        start_ns: int | None = None,
    ) -> Span:
        """A span from now, or from `start_ns`. Without a parent, or a valid one, it begins a trace."""
        context = self._root if parent is None else self._extract({"traceparent": parent}, self._root)
        span = self._tracer.start_span(name, context, self._kinds[kind], _known(attributes), start_time=start_ns)
        return Span(self, span)

    def failed(self, span: OtelSpan, error: str) -> None:
        """Mark a span as one that went wrong."""
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, error))


def _known(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (attributes or {}).items() if value is not None}


@asynccontextmanager
async def started(settings: PlatformSettings, service: str) -> AsyncIterator[Tracing | None]:
    """Tracing of a service for as long as it runs; None where it is off. What waits at the end is exported.

    Raises:
        RuntimeError: it is on, and the extra `otel` is not installed.
    """
    if settings.otlp_endpoint is None:
        yield None
        return
    provider = _provider(settings, service)
    logs.get().info("tracing", endpoint=settings.otlp_endpoint, ratio=settings.trace_ratio)
    try:
        yield Tracing(provider)
    finally:
        await asyncio.to_thread(provider.shutdown)


def _provider(settings: PlatformSettings, service: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - as above
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415 - as above
    except ImportError as err:
        raise RuntimeError("AIAAS_OTLP_ENDPOINT is set: install the extra `otel`, or unset it") from err
    about = {"service.name": f"aiaas-{service}", "service.instance.id": settings.instance}
    provider = TracerProvider(
        ParentBasedTraceIdRatio(settings.trace_ratio), Resource.create(about), shutdown_on_exit=False
    )
    endpoint = f"{(settings.otlp_endpoint or '').rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=_QUEUE, max_export_batch_size=_BATCH, schedule_delay_millis=1000)
    )
    return provider
