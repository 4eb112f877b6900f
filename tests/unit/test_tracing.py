"""Spans against the SDK's own exporter: who is whose child, what lies where, and what it costs when off."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from services.gateway.request_log import Written
from services.gateway.request_spans import RequestSpans
from services.worker.job_spans import JobSpans
from shared import tracing
from shared.codec import rfc3339
from shared.outcome_events import BatchMembership, Timings
from shared.settings import PlatformSettings
from support.facts import receipt

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def exported():
    return InMemorySpanExporter()


def traced(exported, ratio=1.0):
    provider = TracerProvider(ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return tracing.Tracing(provider)


def by_name(exported):
    return {span.name.split()[0]: span for span in exported.get_finished_spans()}


def job_of(traceparent, topic="aiaas.requests.m"):
    record = SimpleNamespace(topic=topic, partition=1, offset=7)
    return SimpleNamespace(record=record, headers=SimpleNamespace(traceparent=traceparent), request_id="r", model="m")


def test_a_call_is_a_child_of_its_caller_and_the_parent_of_what_follows(exported):
    span = RequestSpans(traced(exported)).begin("m", "r", PARENT)
    span.appended()
    span.written("aiaas.requests.m", Written(1, 7))
    JobSpans(traced(exported)).settled([(job_of(span.traceparent), receipt(7), None)])
    span.ended(200, None)
    spans = by_name(exported)
    call = spans["POST"]
    assert (f"{call.context.trace_id:032x}", f"{call.parent.span_id:016x}") == ("a" * 32, "b" * 16)
    assert {spans[name].parent.span_id for name in ("send", "await", "process")} == {call.context.span_id}
    assert spans["send"].attributes["messaging.destination.partition.id"] == "1"
    assert call.status.is_unset


@pytest.mark.parametrize(("status", "failed"), [(400, False), (499, False), (503, True), (504, True)])
def test_only_what_the_server_got_wrong_is_an_error(exported, status, failed):
    RequestSpans(traced(exported)).begin("m", "r", None).ended(status, "some_code")
    [span] = exported.get_finished_spans()
    assert span.parent is None
    assert (not span.status.is_ok and not span.status.is_unset) == failed
    assert span.attributes["aiaas.error.code"] == "some_code"


def test_phases_lie_behind_each_other_and_end_when_the_run_did(exported):
    done_ns = (time.time_ns() - 10_000_000) // 1000 * 1000
    timings = Timings(queue=5_000_000, compute_input=1_000, compute_infer=2_000_000, compute_output=500)
    batch = BatchMembership(id="b", index=1, size=4, padding=0, members_sha256="0" * 64)
    about = {"timings_ns": timings, "batch": batch, "completed_at": rfc3339(done_ns)}
    JobSpans(traced(exported)).settled([(job_of(PARENT), receipt(7, **about), None)])
    spans = by_name(exported)
    steps = [spans[name] for name in ("queue", "compute_input", "compute_infer", "compute_output", "settle")]
    assert [span.end_time - span.start_time for span in steps[:4]] == [5_000_000, 1_000, 2_000_000, 500]
    assert all(before.end_time == after.start_time for before, after in itertools.pairwise(steps))
    assert steps[3].end_time == done_ns
    assert (spans["process"].start_time, spans["process"].end_time) == (steps[0].start_time, steps[4].end_time)
    assert dict(spans["compute_infer"].attributes) == {
        "aiaas.batch.id": "b",
        "aiaas.batch.size": 4,
        "aiaas.batch.index": 1,
    }


def test_a_failed_request_is_an_error_and_its_times_may_be_nonsense(exported):
    about = {
        "status": "failed",
        "error_code": "invalid_input",
        "completed_at": "never",
        "timings_ns": Timings(queue=-5),
    }
    JobSpans(traced(exported)).settled([(job_of("no traceparent"), receipt(7, **about), None)])
    process = by_name(exported)["process"]
    assert process.parent is None
    assert process.attributes["error.type"] == "invalid_input"
    assert process.start_time <= process.end_time


def test_who_began_the_trace_decides_whether_it_is_kept(exported):
    tracing_none = traced(exported, ratio=0.0)
    kept = RequestSpans(tracing_none).begin("m", "r", PARENT)
    dropped = RequestSpans(tracing_none).begin("m", "r", None)
    assert int(dropped.traceparent[-2:], 16) & 1 == 0
    for span in (kept, dropped):
        span.appended()
        span.written("t", Written(0, 0))
        span.ended(200, None)
    JobSpans(traced(exported)).settled([(job_of(dropped.traceparent), receipt(7), None)])
    assert {span.context.trace_id for span in exported.get_finished_spans()} == {int("a" * 32, 16)}


async def test_off_is_none():
    async with tracing.started(PlatformSettings(), "gateway") as off:
        assert off is None


def test_off_imports_no_exporter():
    code = "import sys, services.gateway.app, services.worker.app; print('opentelemetry.exporter' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_opentelemetrys_own_variable_counts_and_ours_comes_first(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert PlatformSettings().otlp_endpoint == "http://collector:4318"
    monkeypatch.setenv("AIAAS_OTLP_ENDPOINT", "http://ours:4318")
    assert PlatformSettings().otlp_endpoint == "http://ours:4318"
