"""The bytes of every event and result, as they were when released: `golden/{name}.hex`.

Records are kept for weeks, the registry's log for ever, and other systems write and read them: what is in `golden` must
stay readable, and what is written must stay the same. A field that is added changes the bytes on purpose; then add a
file beside the others (`{name}.2.hex`, …): the newest is what is written, all of them are read, and `OLDER` says as
what.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from shared import (
    alert_events,
    codec,
    export_events,
    heartbeat_events,
    measurement_events,
    metric_events,
    outcome_events,
)
from shared import events as ev
from shared.codec import decode_event, encode_event
from shared.optimization import DataFile, LoggedRequests, Optimization, Policy, Search, Training, WarmStart
from shared.replay_events import ReplayedOutput, ReplayedRow, ReplayMember, ReplayRan, ReplayRequested
from shared.requests import RequestHeaders
from shared.results import Result
from shared.runtime_config import Graph, InstanceGroup, OptimizationOptions, Parameters, RuntimeConfig
from shared.tensors import Tensor
from shared.topics import EVENT_TYPES
from support.facts import OWNER, PROCESSING, SIGNATURE, artifact, receipt

GOLDEN = Path(__file__).parent / "golden"
ATTEMPT = {"model": "my-model", "version": 3, "attempt": 1, "owner": OWNER}
AT_NS = 1_700_000_000_000_000_001
METRIC = {
    "instance": "worker-1",
    "incarnation": "abc",
    "service": "worker",
    "seq": 9,
    "at_ns": AT_NS,
}
ALERT = {
    "alert": "errors/my-model/3",
    "rule": "errors",
    "severity": "critical",
    "model": "my-model",
    "version": 3,
    "value": 0.31,
    "threshold": 0.05,
    "message": "31% failed",
    "at_ns": AT_NS,
}
MEASUREMENTS = ev.Measurements(
    max_abs_error=0.001,
    cosine=0.999,
    top1_agreement=1.0,
    row_independent=True,
    latencies=(
        ev.Latency(batch_size=1, p50_s=0.002, reference_s=0.003),
        ev.Latency(batch_size=8, p50_s=0.011, reference_s=0.02),
    ),
    speedup=1.7,
    byte_size=1234,
    machine="avx512",
    quality={"accuracy": ev.Estimate(value=0.99, low=0.97, high=1.0, rows=300)},
    throughput_rows_s=730.5,
    memory_bytes=4096,
    judged_on="data",
    on_workers=(
        ev.OnWorker(
            machine=ev.MachineClass(isa="avx2", providers=("CPUExecutionProvider",), threads=4),
            worker="worker-1/abc",
            latencies=(ev.Latency(batch_size=1, p50_s=0.001, reference_s=0.0015),),
        ),
    ),
)
OLDER_MEASUREMENTS = replace(
    MEASUREMENTS,
    latencies=tuple(replace(latency, reference_s=None) for latency in MEASUREMENTS.latencies),
    quality={},
    throughput_rows_s=None,
    memory_bytes=None,
    judged_on="",
    on_workers=(),
)
PROVENANCE = ev.Provenance(
    parent_sha256="ab" * 32,
    recipe="int8-static",
    parameters='{"kind":"static-qdq"}',
    seed=7,
    tools={"onnx": "1.23.2"},
    data={"data": ev.DataUsed(sha256="cd" * 32, rows=128, offsets={"t.requests.m/0": (3, 131)})},
    same_bytes=True,
)
OPTIMIZATION = Optimization(
    data=LoggedRequests(from_offsets={0: 3}, until_offsets={0: 131}, max_rows=128, labels="feedback"),
    evaluation=DataFile(artifact=artifact("data")),
    policy=Policy(objective="size", max_loss=0.02),
    candidates=("int8-static", "pruned-50"),
    seed=7,
)
RUNTIME = RuntimeConfig(
    max_batch_size=8,
    instance_group=(InstanceGroup(kind="KIND_CPU", count=2),),
    parameters=Parameters(intra_op_thread_count=1, enable_mem_arena=False),
    optimization=OptimizationOptions(graph=Graph(level=1)),
)
EXPORT = {"model": "my-model", "export_id": "e-1"}
RECEIPT = receipt(
    41,
    duplicate_of=outcome_events.Coordinates(cluster_id="c", topic="t.requests.m", partition=1, offset=2),
    tenant="acme",
    model_version=3,
    variant="fp32",
    artifact_sha256="ab" * 32,
    output_sha256="cd" * 32,
    processing_sha256="12" * 32,
    runtime=outcome_events.Runtime(
        engine="onnxruntime",
        version="1.20.0",
        provider="CPUExecutionProvider",
        options={"intra_op": 1, "mem_pattern": False, "mode": "sequential"},
        threads=1,
        isa="avx512",
    ),
    batch=outcome_events.BatchMembership(
        id="b-1", index=1, size=3, padding=0, members_sha256="ef" * 32, rows=2, total_rows=5
    ),
    timings_ns=outcome_events.Timings(
        queue=1_000, compute_input=2_000, compute_infer=3_000_000_000, compute_output=4_000
    ),
)
EXAMPLES: dict[str, ev.Event] = {
    "ModelUploaded": ev.ModelUploaded(
        model="my-model",
        upload_id="u-1",
        artifact=artifact(),
        requested_version=3,
        tenant="acme",
        processing=PROCESSING,
        optimization=OPTIMIZATION,
        runtime=RUNTIME,
    ),
    "UpdateRequested": ev.UpdateRequested(
        model="my-model",
        upload_id="u-2",
        parent=3,
        training=Training(train=("fc*",), search=Search(), warm_start=WarmStart(model="other", version=1)),
        optimization=OPTIMIZATION,
        requested_version=4,
        tenant="acme",
    ),
    "PolicySet": ev.PolicySet(model="my-model", policy=Policy(objective="throughput", time_budget_s=60.0)),
    "RuntimeConfigured": ev.RuntimeConfigured(model="my-model", version=3, config=RUNTIME),
    "OptimizationCancelled": ev.OptimizationCancelled(model="my-model", version=3, reason="a mistake"),
    "StepFinished": ev.StepFinished(
        **ATTEMPT,
        step="int8-static",
        key="ab" * 32,
        result=artifact("result"),
        file=artifact(),
        reused_from=ev.StepPlace(model="other", version=1, step="int8-static"),
        seconds=1.5,
        conversion=ev.Conversion(
            format="safetensors",
            sha256="cd" * 32,
            how="weights",
            opset=20,
            shapes=("x[1,8]", "x[2,8]"),
            max_abs_error=0.5,
            rtol=0.001,
            atol=0.0001,
            engine="torch",
            problem="no operator for it",
        ),
    ),
    "MeasurementRequested": measurement_events.MeasurementRequested(
        id="q-1",
        model="my-model",
        version=3,
        asked_by=OWNER,
        worker="worker-1/abc",
        reference=artifact(),
        candidates={"int8-static": artifact("int8")},
        signature=SIGNATURE,
        inputs=artifact("inputs"),
        timeout_s=60.0,
    ),
    "MeasurementTaken": measurement_events.MeasurementTaken(
        id="q-1",
        worker="worker-1/abc",
        latencies={"int8-static": (ev.Latency(batch_size=1, p50_s=0.001, reference_s=0.0015),)},
        problems={"fp16": "it does not load"},
    ),
    "FeedbackGiven": ev.FeedbackGiven(
        model="my-model", request_id="r-1", label=(3, 4), outputs={"y": (0.5, 0.25)}, source="crm"
    ),
    "OptimizationClaimed": ev.OptimizationClaimed(**ATTEMPT),
    "FormatRecognised": ev.FormatRecognised(
        **ATTEMPT, format="savedmodel", needs=("tensorflow", "tf2onnx"), handed_on=True
    ),
    "VariantReady": ev.VariantReady(
        **ATTEMPT,
        variant="fp32",
        artifact=artifact(),
        signature=SIGNATURE,
        batch_cap=32,
        measurements=MEASUREMENTS,
        provenance=PROVENANCE,
        reason="chosen",
        engine="torch",
    ),
    "VariantRejected": ev.VariantRejected(
        **ATTEMPT, variant="int8", reason="slower", measurements=MEASUREMENTS, provenance=PROVENANCE
    ),
    "ModelReady": ev.ModelReady(
        **ATTEMPT,
        variant="fp32",
        reason="the reference",
        comparison=ev.Comparison(
            parent=2,
            metric="accuracy",
            own=ev.Estimate(value=0.99, low=0.97, high=1.0, rows=300),
            parents=ev.Estimate(value=0.98, low=0.96, high=0.99, rows=300),
            worse=False,
        ),
    ),
    "ModelRejected": ev.ModelRejected(**ATTEMPT, code="invalid_model", reason="no graph"),
    "ModelPromoted": ev.ModelPromoted(model="my-model", version=3),
    "TrafficSplit": ev.TrafficSplit(model="my-model", weights={2: 90, 3: 10}),
    "ModelRolledBack": ev.ModelRolledBack(model="my-model"),
    "ModelRetired": ev.ModelRetired(model="my-model", version=None),
    "ModelUnloaded": ev.ModelUnloaded(model="my-model"),
    "ModelLoaded": ev.ModelLoaded(model="my-model"),
    "ExportRequested": export_events.ExportRequested(**EXPORT, version=3, format="pt2", variant="fp32", tenant="acme"),
    "ExportClaimed": export_events.ExportClaimed(**EXPORT, attempt=1, owner=OWNER),
    "ExportReady": export_events.ExportReady(
        **EXPORT,
        attempt=1,
        owner=OWNER,
        artifact=artifact(),
        parity=(export_events.Parity(batch_size=8, max_abs_error=0.000001, tolerance=0.00001),),
        tools={"torch": "2.13.0"},
    ),
    "ExportRejected": export_events.ExportRejected(
        **EXPORT, attempt=1, owner=OWNER, code="unsupported_operator", reason="Loop"
    ),
    "Receipt": RECEIPT,
    "ModelStatistics": outcome_events.ModelStatistics(
        model="my-model",
        version=3,
        last_inference_ms=1_700_000_000_000,
        inferences=9,
        success=outcome_events.Duration(count=10, ns=1_000),
        fail=outcome_events.Duration(count=2, ns=200),
        queue=outcome_events.Duration(count=10, ns=300),
        compute_input=outcome_events.Duration(count=9, ns=40),
        compute_infer=outcome_events.Duration(count=9, ns=2**63 - 1),
        compute_output=outcome_events.Duration(count=9, ns=5),
        runs=(
            outcome_events.RunStatistics(
                batch_size=8,
                compute_input=outcome_events.Duration(count=1, ns=10),
                compute_infer=outcome_events.Duration(count=1, ns=20),
                compute_output=outcome_events.Duration(count=1, ns=30),
            ),
        ),
        offsets={0: 17, 3: 4},
    ),
    "Heartbeat": heartbeat_events.Heartbeat(
        instance="worker-1",
        incarnation="abc",
        service="worker",
        machine=ev.MachineClass(
            isa="avx512",
            providers=("CPUExecutionProvider",),
            threads=2,
            engines={"onnxruntime": "1.20.0"},
            cpus=2,
            memory_bytes=4096,
            python="3.11.9",
        ),
        loaded=(
            heartbeat_events.LoadedModel(
                model="my-model",
                version=3,
                variant="fp32",
                artifact_sha256="ab" * 32,
                byte_size=1234,
                engine="onnxruntime",
                provider="CPUExecutionProvider",
                threads=1,
                session_sha256="cd" * 32,
            ),
        ),
        registry_offset=17,
        lag={"my-model": 5},
        queued={"my-model": 2},
        answered={"my-model": 7},
        positions={"t.requests.my-model/0": 5},
        interval_s=2.0,
        tools=("onnx", "torch"),
    ),
    "HostSampled": metric_events.HostSampled(
        **METRIC,
        cpu_percent=99.5,
        rss_bytes=1,
        host_cpu_percent=50.0,
        host_memory_used_bytes=2,
        host_memory_total_bytes=3,
        disk_used_bytes=4,
        disk_total_bytes=5,
        disk_read_bytes=6,
        disk_written_bytes=7,
        gpus=(
            metric_events.GpuSample(
                index=0, name="H100", utilisation_percent=1.0, memory_used_bytes=1, memory_total_bytes=2
            ),
        ),
        loop_delay_s=0.25,
        network_received_bytes=8,
        network_sent_bytes=9,
    ),
    "BatchesRan": metric_events.BatchesRan(
        **METRIC, model="my-model", version=3, variant="fp32", executions=7, sizes={1: 5, 8: 2}, compute_infer_ns=9
    ),
    "RowsObserved": metric_events.RowsObserved(
        **METRIC,
        model="my-model",
        version=3,
        variant="fp32",
        rows=3,
        features={
            "input/x/mean": metric_events.Feature(kind="number", bins={-200: 1, 283: 2}),
            "output/y": metric_events.Feature(kind="class", bins={0: 3}),
        },
    ),
    "AlertRaised": alert_events.AlertRaised(**ALERT),
    "AlertCleared": alert_events.AlertCleared(**ALERT),
    "HttpAnswered": metric_events.HttpAnswered(**METRIC, statuses={200: 10, 503: 1}, in_flight=4, unready=1),
    "JobProgressed": metric_events.JobProgressed(
        **METRIC,
        model="my-model",
        version=3,
        attempt=1,
        step="measure",
        fraction=0.5,
        remaining_s=12.5,
        points={"loss": (3, 0.25)},
    ),
    "ReplayRequested": ReplayRequested(
        replay_id="r",
        batch_id="b-1",
        attempt=2,
        model="my-model",
        version=3,
        variant="fp32",
        artifact_sha256="ab" * 32,
        processing_sha256="12" * 32,
        members=(
            ReplayMember(
                request=outcome_events.Coordinates(cluster_id="c", topic="t.requests.m", partition=1, offset=2),
                input_sha256="cd" * 32,
                content_type="application/octet-stream",
                header_length=9,
                rows=2,
                value=b"\x00\xff",
                recorded_sha256="ef" * 32,
            ),
            ReplayMember(
                request=outcome_events.Coordinates(topic="t.requests.m", partition=1, offset=3),
                input_sha256="cd" * 32,
                artifact=artifact(),
            ),
        ),
        members_sha256="ef" * 32,
        runtime_config=RuntimeConfig(max_batch_size=8),
        digest_check=False,
    ),
    "ReplayRan": ReplayRan(
        replay_id="r",
        batch_id="b-1",
        attempt=2,
        status="ran",
        worker="worker-1",
        runtime=RECEIPT.runtime,
        artifact_sha256="ab" * 32,
        deterministic=True,
        rows=(
            ReplayedRow(
                output_sha256="ef" * 32,
                infer_ns=5,
                outputs=(
                    ReplayedOutput(name="y", datatype="FP32", shape=(1, 1), data=b"\x00\x00\x80\x3f"),
                    ReplayedOutput(name="z", datatype="FP32", shape=(1, 1), artifact=artifact()),
                ),
            ),
            ReplayedRow(error_code="execution_failed", error="no"),
        ),
    ),
}
OLDER_HEARTBEAT = replace(
    EXAMPLES["Heartbeat"],
    machine=ev.MachineClass(isa="avx512", providers=("CPUExecutionProvider",), threads=2),
    loaded=(
        heartbeat_events.LoadedModel(
            model="my-model", version=3, variant="fp32", artifact_sha256="ab" * 32, byte_size=1234
        ),
    ),
    tools=(),
)
OLDER: dict[str, list[ev.Event]] = {
    "UpdateRequested": [
        replace(
            EXAMPLES["UpdateRequested"],
            training=replace(EXAMPLES["UpdateRequested"].training, epochs=10, held_out=0.2),
        )
    ],
    "ModelUploaded": [
        replace(EXAMPLES["ModelUploaded"], processing=None, optimization=None, runtime=None),
        replace(EXAMPLES["ModelUploaded"], optimization=None, runtime=None),
        replace(EXAMPLES["ModelUploaded"], runtime=None),
    ],
    "VariantReady": [
        replace(
            EXAMPLES["VariantReady"],
            measurements=OLDER_MEASUREMENTS,
            provenance=None,
            reason="",
            engine="onnxruntime",
        ),
        replace(EXAMPLES["VariantReady"], measurements=replace(MEASUREMENTS, on_workers=()), engine="onnxruntime"),
        replace(EXAMPLES["VariantReady"], measurements=replace(MEASUREMENTS, on_workers=())),
    ],
    "VariantRejected": [
        replace(EXAMPLES["VariantRejected"], measurements=OLDER_MEASUREMENTS, provenance=None),
        replace(EXAMPLES["VariantRejected"], measurements=replace(MEASUREMENTS, on_workers=())),
    ],
    "ModelReady": [replace(EXAMPLES["ModelReady"], comparison=None)],
    "JobProgressed": [replace(EXAMPLES["JobProgressed"], remaining_s=None, points={})],
    "Receipt": [
        replace(RECEIPT, processing_sha256=None, batch=replace(RECEIPT.batch, rows=None, total_rows=None)),
    ],
    "Heartbeat": [
        replace(OLDER_HEARTBEAT, answered={}, positions={}),
        OLDER_HEARTBEAT,
    ],
    "HttpAnswered": [replace(EXAMPLES["HttpAnswered"], unready=0)],
    "HostSampled": [replace(EXAMPLES["HostSampled"], network_received_bytes=0, network_sent_bytes=0)],
    "StepFinished": [
        replace(EXAMPLES["StepFinished"], conversion=None),
        replace(
            EXAMPLES["StepFinished"],
            conversion=replace(EXAMPLES["StepFinished"].conversion, engine="onnxruntime", problem=""),
        ),
    ],
}
"""What the files before the newest are read as."""
RESULT = Result(
    id="r-1",
    status="succeeded",
    model_name="my-model",
    model_version=3,
    outputs=(Tensor("y", "FP32", (1, 2), bytes.fromhex("0000803f00000040")),),
    receipt=encode_event(RECEIPT),
)


def releases(name):
    """The bytes of each release, the newest last."""
    first, later = GOLDEN / f"{name}.hex", sorted(GOLDEN.glob(f"{name}.?.hex"))
    return [bytes.fromhex(path.read_text()) for path in (first, *later)]


def golden(name):
    return releases(name)[-1]


def assert_golden(name, encoded):
    assert encoded.hex() == golden(name).hex(), f"the bytes of {name} have changed; see the module docstring"


def test_every_event_has_golden_bytes_and_nothing_else_has():
    assert set(EXAMPLES) == set(EVENT_TYPES)
    assert {path.name.partition(".")[0] for path in GOLDEN.glob("*.hex")} == {*EVENT_TYPES, "Result"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_bytes_of_events(name):
    assert_golden(name, encode_event(EXAMPLES[name]))
    assert decode_event(EVENT_TYPES[name], golden(name)) == EXAMPLES[name]
    read = [decode_event(EVENT_TYPES[name], older) for older in releases(name)[:-1]]
    assert read == OLDER.get(name, [])


def test_the_bytes_of_a_result():
    assert_golden("Result", RESULT.encode())
    assert Result.decode(golden("Result")) == RESULT
    for older in releases("Result")[:-1]:
        read = Result.decode(older)
        assert decode_event(outcome_events.Receipt, read.receipt) == OLDER["Receipt"][0]
        assert replace(read, receipt=None) == replace(RESULT, receipt=None)


@pytest.fixture
def at_a_known_time(monkeypatch):
    monkeypatch.setattr(codec.time, "time_ns", lambda: AT_NS)


@pytest.mark.usefixtures("at_a_known_time")
def test_the_headers_of_an_event_are_the_attributes_of_a_cloud_event():
    headers = codec.cloud_event_headers(event_type="Receipt", source="worker-1", event_id="r-1")
    assert headers == [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"Receipt"),
        ("ce_source", b"worker-1"),
        ("ce_id", b"r-1"),
        ("ce_time", b"2023-11-14T22:13:20.000000001Z"),
        ("content-type", b"application/msgpack"),
    ]


@pytest.mark.usefixtures("at_a_known_time")
def test_the_headers_of_a_request():
    headers = RequestHeaders(
        request_id="r-1",
        content_type="application/octet-stream",
        header_length=99,
        deadline_ms=1_700_000_001_000,
        model_version=3,
        tenant="acme",
        reply_topic="orders.replies",
        reply_channel="gateway-1",
        registry_offset=17,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        echo=(("x-trace", b"\xff"),),
    )
    assert headers.to_kafka("gateway-1") == [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"InferenceRequested"),
        ("ce_source", b"gateway-1"),
        ("ce_id", b"r-1"),
        ("ce_time", b"2023-11-14T22:13:20.000000001Z"),
        ("content-type", b"application/octet-stream"),
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("inference-header-content-length", b"99"),
        ("deadline", b"1700000001000"),
        ("model-version", b"3"),
        ("tenant", b"acme"),
        ("reply-topic", b"orders.replies"),
        ("reply-channel", b"gateway-1"),
        ("registry-offset", b"17"),
        ("x-trace", b"\xff"),
    ]
