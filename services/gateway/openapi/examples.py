"""Exchanges with a gateway that serves `digits`, which takes rows of four numbers and gives the index of the largest.

Everything sent is here, and all that comes back but for what is new each time (ids, times, digests of what is stored).
Tests send each of them and hold the answer against it. Raw bytes are written as the text that they are in ASCII:
`@` at the end of three zero bytes is 2.0 as an FP32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL: Final = "digits"
REQUEST_ID: Final = "0f8fad5b-d9cb-469f-a165-70867728950e"
EXPORT_ID: Final = "7d1f5a52-5f3a-4c0f-8d2e-0a6a3f6f2b11"
IN_PATH: Final = {
    "model": MODEL,
    "version": "1",
    "request_id": REQUEST_ID,
    "export_id": EXPORT_ID,
    "region": "frames",
}
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
EVENTS: Final = "text/event-stream"
ZIP: Final = "application/zip"


@dataclass(frozen=True, slots=True)
class Example:
    """What is sent beside the path, and the answer: a JSON value, bytes as text, or the fields of an event."""

    answer: Any = None
    status: int = 200
    answer_type: str = JSON
    body: Any = None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)


_ROW: Final = [0.0, 2.0, 0.5, 8.0]
_ROW_BYTES: Final = "\0\0\0\0\0\0\0@\0\0\0?\0\0\0A"
_IMAGE: Final = {"name": "image", "datatype": "FP32", "shape": [1, 4]}
_CLASS: Final = {"name": "class", "datatype": "INT64", "shape": [1]}
_ASKED: Final = {"inputs": [_IMAGE | {"data": _ROW}]}
_GIVEN: Final = {"model_name": MODEL, "model_version": "1", "outputs": [_CLASS | {"data": [3]}]}
_SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_DIGEST: Final = "sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:"
_STATUS_URL: Final = f"/v2/models/{MODEL}/requests/{REQUEST_ID}"
_ARTIFACT: Final = {"uri": "file:///var/lib/aiaas/artifacts/9f/" + _SHA256, "sha256": _SHA256, "byte_size": 4}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _binary_infer() -> Example:
    asked = _compact({"inputs": [_IMAGE | {"parameters": {"binary_data_size": 16}}]})
    sent = {"inference-header-content-length": str(len(asked))}
    return Example(_GIVEN, body=asked + _ROW_BYTES, content_type=BINARY, headers=sent)


def _binary_answer() -> Example:
    given = _compact(_GIVEN | {"outputs": [_CLASS | {"parameters": {"binary_data_size": 8}}]})
    asked = _ASKED | {"parameters": {"binary_data_output": True}}
    return Example(given + "\3\0\0\0\0\0\0\0", body=asked, answer_type=BINARY)


INFER: Final = {
    "json": Example(_GIVEN | {"id": "row-1"}, body={"id": "row-1", **_ASKED, "outputs": [{"name": "class"}]}),
    "binary": _binary_infer(),
    "binary_answer": _binary_answer(),
    "urgent": Example(_GIVEN, body=_ASKED | {"parameters": {"priority": 1, "timeout": 10_000_000}}),
    "later": Example(
        {"id": REQUEST_ID, "state": "queued", "status_url": _STATUS_URL},
        status=202,
        body=_ASKED,
        headers={"prefer": "respond-async", "idempotency-key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'},
    ),
    "wrong_shape": Example(
        {"error": "input 'image' has shape [1, 2], model 'digits' takes [-1, 4]", "code": "invalid_input"},
        status=400,
        body={"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2], "data": [0.0, 2.0]}]},
    ),
}
INFER_VERSION: Final = INFER | {"later": replace(INFER["later"], headers={"prefer": "respond-async, wait=0"})}
"""A key stands for one request: that to the version is another one."""
_QUEUED: Final = {
    "id": REQUEST_ID,
    "model_name": MODEL,
    "state": "queued",
    "queue_position": 3,
    "status": None,
    "result": None,
    "error": None,
}
_SUCCEEDED: Final = _QUEUED | {"state": "succeeded", "queue_position": None, "status": "succeeded", "result": _GIVEN}
_CANCELLED: Final = _QUEUED | {
    "state": "cancelled",
    "queue_position": None,
    "status": "cancelled",
    "error": {"code": "cancelled", "message": "the request was cancelled"},
}
STATE: Final = {"queued": Example(_QUEUED), "succeeded": Example(_SUCCEEDED)}
CANCEL: Final = {"cancelled": Example(_CANCELLED)}
STATE_EVENTS: Final = {
    "succeeded": Example(
        {"retry": 1000, "event": "outcome", "id": "succeeded", "data": _compact(_SUCCEEDED)}, answer_type=EVENTS
    ),
    "received": Example(status=204, headers={"last-event-id": "succeeded"}),
}

UPLOAD: Final = {
    "upload": Example(
        {
            "name": MODEL,
            "version": 2,
            "sha256": _SHA256,
            "state": "uploaded",
            "status_url": f"/v2/repository/models/{MODEL}/versions/2",
        },
        status=202,
        body="test",
        content_type=BINARY,
        headers={"content-digest": _DIGEST},
        query={"format": "onnx"},
    ),
    "wrong_digest": Example(
        {"error": "the content has another digest than was promised", "code": "digest_mismatch"},
        status=400,
        body="text",
        content_type=BINARY,
        headers={"content-digest": _DIGEST},
    ),
}
STORE: Final = {
    "labels": Example(_ARTIFACT, status=201, body="test", content_type=BINARY, headers={"content-digest": _DIGEST}),
    "processing": Example(
        _ARTIFACT,
        status=201,
        body={
            "postprocessing": [
                {"kind": "top_k", "output": "scores", "values": "confidence", "indices": "class", "k": 3},
                {"kind": "labels", "indices": "class", "into": "label", "labels": ["cat", "dog", "fox"]},
            ]
        },
    ),
}
_MEASUREMENTS: Final = {
    "max_abs_error": 0.0,
    "cosine": 1.0,
    "top1_agreement": 1.0,
    "row_independent": True,
    "latencies": [{"batch_size": 1, "p50_s": 0.00012, "reference_s": 0.00012}],
    "speedup": 1.0,
    "byte_size": 7,
    "machine": "avx2",
    "quality": {},
    "throughput_rows_s": 42_105.0,
    "memory_bytes": None,
    "judged_on": "synthetic",
}
_VERSION: Final = {
    "name": MODEL,
    "version": 1,
    "state": "ready",
    "active": True,
    "progress": None,
    "attempt": 1,
    "sha256": _SHA256,
    "byte_size": 4,
    "format": "onnx",
    "recognised": None,
    "needs": [],
    "waits_for": None,
    "conversion": None,
    "processing": None,
    "upload_id": "1f0ac3b8f2c14f39a4b7b4c50b1f3c55",
    "uploaded_at": "2026-11-23T21:00:00.000000000Z",
    "chosen": "fp32",
    "code": None,
    "reason": "the only one",
    "parent": None,
    "training": None,
    "optimization": None,
    "runtime": None,
    "comparison": None,
    "steps": [{"name": "fp32", "seconds": 1.8, "sha256": _SHA256, "reused_from": None}],
    "variants": [
        {
            "name": "fp32",
            "chosen": True,
            "sha256": _SHA256,
            "byte_size": 7,
            "engine": "onnxruntime",
            "batch_cap": 8,
            "measurements": _MEASUREMENTS,
            "provenance": None,
            "reason": "",
        }
    ],
    "rejected": [],
}
_ROUTING: Final = {"name": MODEL, "unloaded": False, "active": 1, "previous": [], "weights": {}}
_MODEL: Final = _ROUTING | {"retired": False, "policy": None, "versions": [_VERSION]}
MODELS: Final = {"all": Example([_MODEL])}
VERSIONS: Final = {"digits": Example(_MODEL)}
VERSION: Final = {"digits": Example(_VERSION)}
ROUTING: Final = {"digits": Example(_ROUTING)}
SPLIT: Final = {"all_to_one": Example(_ROUTING | {"weights": {"1": 100}}, body={"weights": {"1": 100}})}
UPDATE: Final = {
    "from_the_log": Example(
        {
            "name": MODEL,
            "version": 2,
            "sha256": _SHA256,
            "state": "uploaded",
            "status_url": f"/v2/repository/models/{MODEL}/versions/2",
        },
        status=202,
        body={
            "parent": 1,
            "data": {"kind": "log", "labels": "feedback", "from_ms": 1_795_467_600_000},
            "training": {"learning_rate": 0.001, "epochs": 10, "train": ["fc*"]},
            "policy": {"max_loss": 0.005},
        },
    ),
    "no_data": Example(
        {"error": "data: an update is trained on data: name a file, or a range of the log", "code": "invalid_input"},
        status=400,
        body={"parent": 1},
    ),
}
CANCEL_WORK: Final = {
    "ready_already": Example(
        {"error": "version 1 of model 'digits' can't be cancelled: it is ready", "code": "conflict"}, status=409
    )
}
POLICY: Final = {
    "small": Example(
        {
            "name": MODEL,
            "policy": {
                "objective": "size",
                "max_loss": 0.005,
                "min_cosine": None,
                "min_gain": None,
                "proof": None,
                "time_budget_s": 600.0,
            },
        },
        body={"objective": "size", "max_loss": 0.005, "time_budget_s": 600},
    )
}
FEEDBACK: Final = {
    "label": Example({"model_name": MODEL, "request_id": REQUEST_ID}, status=202, body={"label": [3]}),
    "nothing": Example(
        {
            "error": 'expected {"label": [3]} or {"outputs": {"scores": [0.1, 0.9]}}',
            "code": "invalid_input",
        },
        status=400,
        body={},
    ),
}
_EXPORT: Final = {
    "id": EXPORT_ID,
    "name": MODEL,
    "version": 1,
    "format": "bundle",
    "variant": "fp32",
    "state": "queued",
    "requested_at": "2026-11-28T21:00:00.000000000Z",
    "sha256": None,
    "byte_size": None,
    "parity": [],
    "tools": {},
    "code": None,
    "reason": None,
    "status_url": f"/v2/repository/models/{MODEL}/versions/1/export/{EXPORT_ID}",
    "file_url": None,
}
EXPORT: Final = {
    "bundle": Example(_EXPORT, status=202, query={"format": "bundle"}),
    "wrong_format": Example(
        {
            "error": "format 'tflite' is none of onnx, bundle, pt2, torchscript, savedmodel",
            "code": "invalid_input",
        },
        status=400,
        query={"format": "tflite"},
    ),
}
EXPORT_STATE: Final = {"queued": Example(_EXPORT)}
EXPORT_FILE: Final = {"queued": Example({"error": "the export is queued: ask again", "code": "unfinished"}, status=503)}
CONFIGURE: Final = {
    "two_parts": Example(
        {
            "name": MODEL,
            "version": None,
            "runtime": {
                "max_batch_size": 4,
                "instance_group": [{"kind": "KIND_CPU", "count": 2}],
                "parameters": {"intra_op_thread_count": {"string_value": "1"}},
                "optimization": {"graph": {"level": 1}},
            },
        },
        body={
            "max_batch_size": 4,
            "instance_group": [{"kind": "KIND_CPU", "count": 2}],
            "parameters": {"intra_op_thread_count": 1},
            "optimization": {"graph": {"level": 1}},
        },
    ),
    "wrong_option": Example(
        {"error": "parameters: Object contains unknown field `cudnn_conv_algo_search`", "code": "invalid_input"},
        status=400,
        body={"parameters": {"cudnn_conv_algo_search": 1}},
    ),
}
CONFIGURE_VERSION: Final = {
    "as_workers_are_set": Example({"name": MODEL, "version": 1, "runtime": {}}, body={}),
}
WORKERS: Final = {
    "one": Example(
        [
            {
                "instance": "worker-1",
                "service": "worker",
                "machine": {
                    "isa": "x86_64-avx512_vnni",
                    "providers": ["CPUExecutionProvider"],
                    "threads": 2,
                    "engines": {"onnxruntime": "1.23.0"},
                    "cpus": 2,
                    "memory_bytes": 8_200_000_000,
                    "python": "3.11.9",
                },
                "loaded": [
                    {
                        "model": MODEL,
                        "version": 1,
                        "variant": "fp32",
                        "artifact_sha256": _SHA256,
                        "byte_size": 7,
                        "engine": "onnxruntime",
                        "provider": "CPUExecutionProvider",
                        "threads": 2,
                        "session_sha256": None,
                    }
                ],
                "registry_offset": 17,
            }
        ]
    )
}
RETIRE: Final = {"digits": Example(_ROUTING | {"active": None})}
ROLL_BACK: Final = {
    "nothing_before": Example(
        {"error": "model 'digits' has no earlier version that is still ready", "code": "conflict"}, status=409
    )
}

LIVE: Final = {"live": Example({"live": True})}
READY: Final = {"ready": Example({"ready": True})}
SERVER: Final = {
    "server": Example({"name": "aiaas", "version": "0.1.0", "extensions": ["binary_tensor_data", "statistics"]})
}
METADATA: Final = {
    "digits": Example(
        {
            "name": MODEL,
            "versions": ["1"],
            "platform": "onnx",
            "inputs": [_IMAGE | {"shape": [-1, 4]}],
            "outputs": [_CLASS | {"shape": [-1]}],
        }
    )
}
MODEL_READY: Final = {"digits": Example({"name": MODEL, "ready": True})}
_SPENT: Final = {"count": 2, "ns": 180_000}
_NONE: Final = {"count": 0, "ns": 0}
_PHASES: Final = {"compute_input": _SPENT, "compute_infer": _SPENT, "compute_output": _SPENT}
STATISTICS: Final = {
    "digits": Example(
        {
            "model_stats": [
                {
                    "name": MODEL,
                    "version": "1",
                    "last_inference": 1_795_467_600_000,
                    "inference_count": 2,
                    "execution_count": 1,
                    "inference_stats": {
                        "success": _SPENT,
                        "fail": _NONE,
                        "queue": _SPENT,
                        **_PHASES,
                        "cache_hit": _NONE,
                        "cache_miss": _NONE,
                    },
                    "batch_stats": [{"batch_size": 2, **_PHASES}],
                    "exact_at": {"0": 2},
                }
            ]
        }
    )
}
CONFIG: Final = {
    "digits": Example(
        {
            "name": MODEL,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "version_policy": {"specific": {"versions": [1]}},
            "max_batch_size": 8,
            "input": [
                {
                    "name": "image",
                    "data_type": "TYPE_FP32",
                    "dims": [4],
                    "format": "FORMAT_NONE",
                    "is_shape_tensor": False,
                    "optional": False,
                }
            ],
            "output": [{"name": "class", "data_type": "TYPE_INT64", "dims": [], "is_shape_tensor": False}],
            "instance_group": [{"name": "digits_cpu", "kind": "KIND_CPU", "count": 1}],
            "default_model_filename": "model.onnx",
            "model_transaction_policy": {"decoupled": False},
            "workers": [
                {
                    "instance": "worker-1",
                    "engine": "onnxruntime",
                    "provider": "CPUExecutionProvider",
                    "threads": 2,
                    "configured": True,
                }
            ],
            "dynamic_batching": {
                "max_queue_delay_microseconds": 0,
                "priority_levels": 2,
                "default_priority_level": 2,
            },
        }
    )
}
INDEX: Final = {
    "only_ready": Example([{"name": MODEL, "version": "1", "state": "READY", "reason": ""}], body={"ready": True})
}
LOAD: Final = {"digits": Example(_ROUTING, body={})}
UNLOAD: Final = {
    "digits": Example(_ROUTING | {"unloaded": True}, body={"parameters": {"unload_dependents": False}}),
}
NO_REGIONS: Final = {"none": Example([])}
NO_REGION: Final = {
    "none": Example(
        {"error": "no region 'frames' is registered: shared memory is not supported", "code": "not_found"}, status=404
    )
}
UNREGISTER_ALL: Final = {"none": Example({"registered": []})}
UNREGISTER: Final = {"none": Example({"name": "frames", "registered": False})}
TRACING: Final = {"off": Example({"trace_level": ["OFF"]})}
LOGGING: Final = {
    "info": Example(
        {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "ISO8601",
        }
    )
}
REFUSED: Final = {
    "refused": Example({"error": "log settings can't be changed while the gateway runs", "code": "unsupported"}, 400)
}
ASYNCAPI: Final = {
    "begins": Example({"asyncapi": "3.0.0", "info": {"title": "aiaas", "version": "0.1.0"}, "channels": {}})
}
