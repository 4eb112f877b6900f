"""Records for the AsyncAPI document, as JSON: tests decode each event, and produce each request to a worker.

The model is `digits`, which takes rows of four numbers and gives the index of the largest.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from shared.alert_events import AlertCleared, AlertRaised
from shared.artifacts import Artifact
from shared.codec import MSGPACK, to_map
from shared.events import (
    Estimate,
    Event,
    FeedbackGiven,
    FormatRecognised,
    Latency,
    MachineClass,
    Measurements,
    ModelLoaded,
    ModelPromoted,
    ModelReady,
    ModelRejected,
    ModelRetired,
    ModelRolledBack,
    ModelUnloaded,
    ModelUploaded,
    OptimizationCancelled,
    OptimizationClaimed,
    PolicySet,
    Provenance,
    RuntimeConfigured,
    StepFinished,
    TrafficSplit,
    UpdateRequested,
    VariantReady,
    VariantRejected,
)
from shared.export_events import ExportClaimed, ExportReady, ExportRejected, ExportRequested, Parity
from shared.heartbeat_events import Heartbeat, LoadedModel
from shared.measurement_events import MeasurementRequested, MeasurementTaken
from shared.metric_events import BatchesRan, Feature, HostSampled, HttpAnswered, JobProgressed, RowsObserved
from shared.oip import BINARY, JSON
from shared.optimization import LoggedRequests, Optimization, Policy, Training
from shared.outcome_events import (
    BatchMembership,
    Coordinates,
    Duration,
    ModelStatistics,
    Receipt,
    RunStatistics,
    Runtime,
    Timings,
)
from shared.replay_events import ReplayedOutput, ReplayedRow, ReplayMember, ReplayRan, ReplayRequested
from shared.runtime_config import InstanceGroup, Parameters, RuntimeConfig
from shared.signature import Signature, TensorSpec

MODEL: Final = "digits"
_SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_ARTIFACT: Final = Artifact(uri=f"s3://models/9f/{_SHA256}", sha256=_SHA256, byte_size=21_344)
_ID: Final = "0f8fad5b-d9cb-469f-a165-70867728950e"
_ATTEMPT: Final[dict[str, Any]] = {"model": MODEL, "version": 1, "attempt": 1, "owner": "optimizer-1/4b1d"}
_EXPORT: Final[dict[str, Any]] = {"model": MODEL, "export_id": "7d1f5a52-5f3a-4c0f-8d2e-0a6a3f6f2b11"}
_MEASURED: Final = Measurements(
    max_abs_error=0.0004,
    cosine=0.99999,
    top1_agreement=1.0,
    row_independent=True,
    latencies=(Latency(batch_size=1, p50_s=0.00011), Latency(batch_size=8, p50_s=0.00019)),
    speedup=1.31,
    byte_size=21_344,
    machine="avx2",
    quality={"agreement": Estimate(value=1.0, low=0.985, high=1.0, rows=256)},
    throughput_rows_s=42_105.0,
    memory_bytes=180_224,
    judged_on="synthetic",
)
_SIGNATURE: Final = Signature(
    inputs=(TensorSpec(name="image", datatype="FP32", shape=("rows", 4), batch_axis=0),),
    outputs=(TensorSpec(name="class", datatype="INT64", shape=("rows",), batch_axis=0),),
)
_METRIC: Final[dict[str, Any]] = {
    "instance": "worker-1",
    "incarnation": "77aa",
    "service": "worker",
    "seq": 12,
    "at_ns": 1_795_467_600_000_000_000,
}
_ROW_BYTES: Final = bytes.fromhex("00000000000000400000003f00000041")
_RUNTIME: Final = Runtime(
    engine="onnxruntime", version="1.23.0", provider="CPUExecutionProvider", options={}, threads=2, isa="avx2"
)
_ASKED_FOR: Final = Coordinates(
    cluster_id="5L6g3nShT-eMCtK--X86sw", topic="aiaas.requests.digits", partition=2, offset=41
)
_REPLAY: Final[dict[str, Any]] = {
    "replay_id": "a3f1c0de",
    "batch_id": "0b6c0f5d7a4e4b0f8f0c1d2e3f405162",
    "attempt": 1,
    "artifact_sha256": _SHA256,
}
_ALERT: Final[dict[str, Any]] = {
    "alert": f"errors/{MODEL}/1",
    "rule": "errors",
    "severity": "critical",
    "model": MODEL,
    "version": 1,
    "threshold": 0.05,
    "message": f"31.0% of the requests to {MODEL} version 1 failed or expired in the last minute",
}
_SPENT: Final = Duration(count=2, ns=180_000)

_ALL: Final[tuple[Event, ...]] = (
    ModelUploaded(model=MODEL, upload_id="1f0ac3b8f2c14f39a4b7b4c50b1f3c55", artifact=_ARTIFACT, tenant="acme"),
    UpdateRequested(
        model=MODEL,
        upload_id="5b1b7d0e8c3a4a5d9b0a7c1f2e3d4c5b",
        parent=1,
        training=Training(optimizer="adamw", learning_rate=0.001, epochs=10),
        optimization=Optimization(data=LoggedRequests(from_ms=1_795_467_600_000, labels="feedback"), seed=7),
    ),
    PolicySet(model=MODEL, policy=Policy(objective="latency", max_loss=0.01, time_budget_s=300.0)),
    RuntimeConfigured(
        model=MODEL,
        config=RuntimeConfig(
            max_batch_size=8,
            instance_group=(InstanceGroup(kind="KIND_CPU", count=2),),
            parameters=Parameters(intra_op_thread_count=1),
        ),
    ),
    OptimizationCancelled(model=MODEL, version=2, reason="trained on the wrong data"),
    OptimizationClaimed(**_ATTEMPT),
    FormatRecognised(**_ATTEMPT, format="savedmodel", needs=("tensorflow", "tf2onnx"), handed_on=True),
    StepFinished(**_ATTEMPT, step="fp32", key=_SHA256, result=_ARTIFACT, file=_ARTIFACT, seconds=1.8),
    VariantReady(
        **_ATTEMPT,
        variant="int8",
        artifact=_ARTIFACT,
        signature=_SIGNATURE,
        batch_cap=64,
        measurements=_MEASURED,
        provenance=Provenance(parent_sha256=_SHA256, recipe="int8-weight-only", seed=7, tools={"onnx": "1.23.2"}),
    ),
    VariantRejected(**_ATTEMPT, variant="fp16", reason="slower than fp32 on avx2 (speedup 0.84)"),
    ModelReady(**_ATTEMPT, variant="int8", reason="the fastest that keeps the answers"),
    ModelRejected(**_ATTEMPT, code="not_onnx", reason="the file is not an ONNX model"),
    ModelPromoted(model=MODEL, version=1),
    TrafficSplit(model=MODEL, weights={1: 90, 2: 10}),
    ModelRolledBack(model=MODEL),
    ModelRetired(model=MODEL, version=1),
    ModelUnloaded(model=MODEL),
    ModelLoaded(model=MODEL),
    ExportRequested(**_EXPORT, version=1, format="pt2", tenant="acme"),
    ExportClaimed(**_EXPORT, attempt=1, owner="optimizer-1/4b1d"),
    ExportReady(
        **_EXPORT,
        attempt=1,
        owner="optimizer-1/4b1d",
        artifact=_ARTIFACT,
        parity=(Parity(batch_size=8, max_abs_error=0.0000004, tolerance=0.00001),),
        tools={"torch": "2.13.0", "onnxruntime": "1.23.0"},
    ),
    ExportRejected(
        **_EXPORT,
        attempt=1,
        owner="optimizer-1/4b1d",
        code="unsupported_operator",
        reason="The graph has operators that are not interpreted: ai.onnx.Loop",
    ),
    Receipt(
        request_id=_ID,
        tenant="acme",
        model_name=MODEL,
        model_version=1,
        variant="int8",
        artifact_sha256=_SHA256,
        registry_offset=7,
        status="succeeded",
        request=_ASKED_FOR,
        input_sha256=_SHA256,
        output_sha256=_SHA256,
        runtime=_RUNTIME,
        batch=BatchMembership(id="worker-1/77aa/9", index=0, size=2, padding=0, members_sha256=_SHA256),
        timings_ns=Timings(queue=510_000, compute_input=4_000, compute_infer=80_000, compute_output=6_000),
        worker="worker-1",
        completed_at="2026-11-23T21:00:00.000000000Z",
    ),
    Heartbeat(
        instance="worker-1",
        incarnation="77aa",
        service="worker",
        machine=MachineClass(isa="avx2", providers=("CPUExecutionProvider",), threads=2),
        loaded=(LoadedModel(model=MODEL, version=1, variant="int8", artifact_sha256=_SHA256, byte_size=21_344),),
        registry_offset=7,
        lag={MODEL: 3},
        queued={MODEL: 2},
        answered={MODEL: 40},
        positions={"aiaas.requests.digits/2": 42},
        interval_s=2.0,
    ),
    ModelStatistics(
        model=MODEL,
        version=1,
        last_inference_ms=1_795_467_600_000,
        inferences=2,
        success=_SPENT,
        fail=Duration(),
        queue=_SPENT,
        compute_input=_SPENT,
        compute_infer=_SPENT,
        compute_output=_SPENT,
        runs=(RunStatistics(batch_size=2, compute_input=_SPENT, compute_infer=_SPENT, compute_output=_SPENT),),
        offsets={0: 0, 1: 2},
    ),
    HostSampled(
        **_METRIC,
        cpu_percent=41.5,
        rss_bytes=181_000_000,
        host_cpu_percent=63.0,
        host_memory_used_bytes=3_100_000_000,
        host_memory_total_bytes=8_200_000_000,
        disk_used_bytes=21_000_000_000,
        disk_total_bytes=64_000_000_000,
        disk_read_bytes=12_000,
        disk_written_bytes=48_000,
        loop_delay_s=0.002,
        network_received_bytes=9_400_000,
        network_sent_bytes=7_100_000,
    ),
    BatchesRan(
        **_METRIC, model=MODEL, version=1, variant="int8", executions=3, sizes={1: 1, 8: 2}, compute_infer_ns=420_000
    ),
    RowsObserved(
        **_METRIC,
        model=MODEL,
        version=1,
        variant="int8",
        rows=3,
        features={
            "input/image/mean": Feature(kind="number", bins={283: 2, 285: 1}),
            "output/class/0": Feature(kind="number", bins={0: 1, 284: 2}),
        },
    ),
    HttpAnswered(
        **(_METRIC | {"instance": "gateway-1", "service": "gateway"}), statuses={200: 64, 503: 1}, in_flight=4
    ),
    JobProgressed(
        **(_METRIC | {"instance": "optimizer-1", "service": "optimizer"}),
        model=MODEL,
        version=1,
        attempt=1,
        step="int8-weight-only: measure",
        fraction=0.6,
        remaining_s=4.5,
    ),
    AlertRaised(**_ALERT, value=0.31, at_ns=1_795_467_600_000_000_000),
    AlertCleared(**_ALERT, value=0.004, at_ns=1_795_467_690_000_000_000),
    FeedbackGiven(model=MODEL, request_id=_ID, label=(3,), source="crm"),
    MeasurementRequested(
        id="5f4dcc3b5aa765d61d8327deb882cf99",
        model=MODEL,
        version=1,
        asked_by="optimizer-1/9d1c",
        worker="worker-1/4f0a",
        reference=_ARTIFACT,
        candidates={"int8": _ARTIFACT},
        signature=_SIGNATURE,
        inputs=_ARTIFACT,
        timeout_s=60.0,
    ),
    MeasurementTaken(
        id="5f4dcc3b5aa765d61d8327deb882cf99",
        worker="worker-1/4f0a",
        latencies={"int8": (Latency(batch_size=1, p50_s=0.0004, reference_s=0.0009),)},
    ),
    ReplayRequested(
        **_REPLAY,
        model=MODEL,
        version=1,
        variant="int8",
        members=(
            ReplayMember(
                request=_ASKED_FOR,
                input_sha256=_SHA256,
                content_type=MSGPACK,
                rows=1,
                value=_ROW_BYTES,
                recorded_sha256=_SHA256,
            ),
        ),
        members_sha256=_SHA256,
    ),
    ReplayRan(
        **_REPLAY,
        status="ran",
        worker="worker-1",
        runtime=_RUNTIME,
        rows=(
            ReplayedRow(
                output_sha256=_SHA256,
                infer_ns=80_000,
                outputs=(ReplayedOutput(name="class", datatype="INT64", shape=(1,), data=(3).to_bytes(8, "little")),),
            ),
        ),
    ),
)
EVENTS: Final[dict[str, Any]] = {type(event).__name__: to_map(event) for event in _ALL}
"""Each event once, as the map that goes on the wire, by `ce_type`."""

_IMAGE: Final = {"name": "image", "datatype": "FP32", "shape": [1, 4]}
_BINARY_HEADER: Final = json.dumps({"inputs": [_IMAGE | {"parameters": {"binary_data_size": 16}}]}).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "json": {
        "headers": {"content-type": JSON, "ce_id": "row-1", "x-order": "4711"},
        "payload": {"inputs": [_IMAGE | {"data": [0.0, 2.0, 0.5, 8.0]}]},
    },
    "msgpack": {
        "headers": {"content-type": MSGPACK, "ce_id": "row-2", "model-version": "1", "tenant": "acme"},
        "payload": {"inputs": [_IMAGE | {"data": _base64(_ROW_BYTES)}], "outputs": [{"name": "class"}]},
    },
    "binary": {
        "headers": {
            "content-type": BINARY,
            "ce_id": "row-3",
            "inference-header-content-length": str(len(_BINARY_HEADER)),
        },
        "payload": _base64(_BINARY_HEADER + _ROW_BYTES),
    },
}
"""One request in each form. Bytes are in base64."""

_ENVELOPE: Final = {
    "ce_specversion": "1.0",
    "ce_source": "worker-1",
    "ce_time": "2026-11-23T21:00:00.000000000Z",
    "content-type": JSON,
}
_ANSWERED: Final = _ENVELOPE | {"ce_type": "InferenceAnswered", "ce_id": "row-1", "x-order": "4711"}
REPLY: Final[dict[str, dict[str, Any]]] = {
    "answered": {
        "headers": _ANSWERED,
        "payload": {
            "model_name": MODEL,
            "model_version": "1",
            "outputs": [{"name": "class", "datatype": "INT64", "shape": [1], "data": [3]}],
        },
    },
    "expired": {
        "headers": _ANSWERED,
        "payload": {"error": "the deadline passed before it ran", "code": "deadline_exceeded", "status": "expired"},
    },
}
DEAD_LETTER: Final[dict[str, dict[str, Any]]] = {
    "not_json": {
        "headers": _ENVELOPE
        | {
            "ce_type": "DeadLettered",
            "ce_id": "6f1c1f0e-63c5-4d3f-9a52-3a8a58c1d1b7",
            "x-original-topic": "aiaas.requests.digits",
            "x-original-partition": "2",
            "x-original-offset": "42",
            "x-error-code": "invalid_input",
            "x-error": "not a JSON document: unexpected character: line 1 column 1 (char 0)",
            "x-attempt": "1",
        },
        "payload": _base64(b"hello"),
    }
}
