"""What a monitor answers, made up: what a real one can't be brought to say in a test (alerts, drift, hostile names).

Shapes as in docs/monitor.md.
"""

from __future__ import annotations

import math
import time

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
"""What must be shown as it stands."""
STEP_S = 10
POINTS = 90


def times(now_s: float) -> list[int]:
    end = int(now_s // STEP_S * STEP_S)
    return [end - STEP_S * (POINTS - index) for index in range(POINTS)]


def wave(base: float, swing: float, phase: float = 0.0, gap: range = range(0)) -> list[float | None]:
    return [None if i in gap else max(base + swing * math.sin(i / 7 + phase), 0) for i in range(POINTS)]


def alert(now_s: float) -> dict:
    return {
        "id": "latency_slo/digits/2",
        "rule": "latency_slo",
        "severity": "warning",
        "model": "digits",
        "version": 2,
        "instance": None,
        "value": 0.9,
        "threshold": 0.5,
        "message": f"digits v2 answers too slowly {HOSTILE}",
        "since": now_s - 90,
    }


def overview(now_s: float, *, alerts: bool = True) -> dict:
    quick = {"p50_s": 0.0042, "p95_s": 0.011, "p99_s": 0.02}
    loaded = [{"model": "digits", "version": 2, "variant": "fp32", "artifact_sha256": "0" * 64, "byte_size": 1}]
    about = {"incarnation": "i", "since": now_s - 4000, "sample_age_s": 2.1, "loop_delay_s": 0.002}
    measured = {"cpu_percent": 45.0, "rss_bytes": 310_000_000, "queued": {}, **about}
    return {
        "at": now_s,
        "ready": True,
        "waiting_for": None,
        "window_s": 60,
        "offsets": {"0": 120},
        "lag": 0,
        "totals": {
            "requests": 2251,
            "per_s": 37.5 + math.sin(now_s),
            "errors": 2,
            "error_ratio": 0.0009,
            "rejected": 4,
            "consumer_lag": 12,
            **quick,
        },
        "services": [
            {"instance": "gateway-1", "service": "gateway", "up": True, "loaded": [], "lag": {}, **measured},
            {
                "instance": "worker-1",
                "service": "worker",
                "up": True,
                "loaded": loaded,
                "lag": {"digits": 12},
                **measured,
            },
            {"instance": HOSTILE, "service": "worker", "up": False, "loaded": [], "lag": {}, **measured},
        ],
        "models": [
            {
                "model": model,
                "version": version,
                "requests": requests,
                "per_s": requests / 60,
                "outcomes": {"succeeded": requests, "failed": 0, "expired": 0, "cancelled": 0},
                "error_ratio": 0.0,
                "mean_batch_size": 3.2,
                "last_success_age_s": 0.4,
                "bottleneck": "queue",
                **quick,
            }
            for model, version, requests in (("digits", 2, 1800), ("magika", 1, 449), (HOSTILE, 1, 2))
        ],
        "alerts": [alert(now_s)] if alerts else [],
    }


def model_series(model: str, now_s: float) -> dict:
    at = times(now_s)
    scale = 1 + len(model) % 5
    quantiles = {
        "p50": wave(0.002, 0.001),
        "p95": wave(0.006, 0.002),
        "p99": wave(0.01, 0.004),
        "mean": wave(0.003, 0.001),
    }
    phases = ("queue", "compute_input", "compute_infer", "compute_output", "total")
    return {
        "model": model,
        "version": None,
        "from": at[0],
        "to": at[-1] + STEP_S,
        "step_s": STEP_S,
        "at": at,
        "requests": {status: [0] * POINTS for status in ("succeeded", "failed", "expired", "cancelled")},
        "errors": {},
        "throughput_per_s": wave(10 * scale, 4, scale, range(40, 46)),
        "latency_s": dict.fromkeys(phases, quantiles),
        "batch_size": {"mean": wave(4, 2), "histogram": {"1": 20, "2": 40, "4": 220, "8": 90}},
        "lag": [0] * POINTS,
        "queued": [0] * POINTS,
        "loaded": [1] * POINTS,
    }


def models() -> dict:
    measurements = {
        "max_abs_error": 2e-6,
        "top1_agreement": 0.999,
        "latencies": [{"batch_size": 1, "p50_s": 0.0002, "reference_s": 0.0005}],
        "speedup": 2.3,
        "throughput_rows_s": 41_000.0,
        "quality": {"accuracy": {"value": 0.982, "low": 0.97, "high": 0.99, "rows": 500}},
    }
    made = {"batch_cap": 128, "byte_size": 1_300_000, "measurements": measurements}
    variants = [
        {"variant": "fp32", "state": "ready", "reason": "the reference", **made},
        {"variant": "int8", "state": "ready", "reason": "2.3 times as fast", **made},
        {"variant": "fp16", "state": "rejected", "reason": f"slower {HOSTILE}", **made, "batch_cap": None},
    ]
    version = {"state": "ready", "chosen": "int8", "reason": "the fastest that keeps the quality", "variants": variants}
    return {
        "registry_offset": 12,
        "models": [
            {
                "model": "digits",
                "active": 2,
                "unloaded": False,
                "weights": {},
                "versions": [
                    {"version": 1, "created_at": 1764350000.0, **version},
                    {"version": 2, "created_at": 1764353000.0, **version},
                ],
            }
        ],
    }


def analysis(model: str) -> dict:
    slo = {
        "latency_s": 0.5,
        "latency_target": 0.99,
        "latency_met": 0.998,
        "availability_target": 0.999,
        "availability": 0.991,
        "error_budget": 0.001,
        "error_budget_spent": 9.0,
        "burn_rate": 9.0,
    }
    figures = {"saturation": 0.42, "capacity_per_s": 180.0, "cost_per_1000": 0.0021, "currency": "USD", "slo": slo}
    about = {"model": model, "version": 2, "requests": 222, "per_s": 0.06, "trend": {}}
    return {"from": 0, "to": 1, "models": [{**about, "bottleneck": {"phase": "queue", "share": 0.61}, **figures}]}


def drift(model: str) -> dict:
    feature = {
        "feature": "input/x",
        "kind": "mean",
        "statistic": 0.4,
        "threshold": 0.2,
        "p_value": 0.0004,
        "drifted": True,
    }
    about = {"rows": 5000, "reference_rows": 2000, "windows_compared": 3, "false_alarm_rate": 0.01}
    version = {"model": model, "version": 2, "state": "watching", "alarm": True, "features": [feature], **about}
    return {"models": [version]}


def hosts(now_s: float) -> dict:
    at = times(now_s)

    def host(name: str, phase: float) -> dict:
        cpu, memory = wave(40, 20, phase), wave(3e8, 1e7, phase)
        readings = {"cpu_percent": {"mean": cpu, "max": cpu}, "rss_bytes": {"mean": memory, "max": memory}}
        return {"instance": name, "service": "worker", "at": at, **readings, "gpus": []}

    told = [host("worker-1", 0), host("gateway-1", 2)]
    return {"from": at[0], "to": at[-1] + STEP_S, "step_s": STEP_S, "hosts": told}


def timeline(now_s: float) -> dict:
    def event(ago_s: int, kind: str, text: str) -> dict:
        return {"at": now_s - ago_s, "kind": kind, "text": text, "model": None, "version": None, "instance": None}

    events = [
        event(600, "deploy", "digits version 2 was promoted"),
        event(300, "lost", f"{HOSTILE} was not heard of any more"),
        event(90, "alert", "digits v2 answers too slowly"),
    ]
    return {"from": now_s - 900, "to": now_s, "events": events}


def jobs(now_s: float) -> dict:
    curves = {
        f"loss/{part}": [[step, 1 / (step + shift)] for step in range(40)]
        for part, shift in (("train", 1), ("validation", 2))
    }
    about = {
        "model": "digits",
        "version": 3,
        "attempt": 1,
        "instance": "optimizer-1",
        "step": "train",
        "remaining_s": 12.0,
    }
    return {"jobs": [{**about, "fraction": 0.25, "at": now_s, "curves": curves}]}


def alerts(now_s: float) -> dict:
    active = alert(now_s)
    rule = {"rule": "latency_slo", "severity": "warning", "raises_above": 0.5, "clears_below": 0.4, "for_s": 30}
    return {
        "active": [active],
        "history": [{"at": now_s - 90, "change": "raised", **active}],
        "rules": [{**rule, "text": "the share of slow requests"}],
    }


def answer(path: str, now_s: float | None = None) -> dict | None:
    """The JSON to a path below `/v1`; None for what is not there."""
    now_s = time.time() if now_s is None else now_s
    parts = path.strip("/").split("/")
    if parts[:2] == ["v1", "models"] and parts[3:] == ["series"]:
        return model_series(parts[2], now_s)
    answers = {
        "/v1/overview": lambda: overview(now_s),
        "/v1/hosts/series": lambda: hosts(now_s),
        "/v1/models": models,
        "/v1/analysis": lambda: analysis("digits"),
        "/v1/drift": lambda: drift("digits"),
        "/v1/timeline": lambda: timeline(now_s),
        "/v1/jobs": lambda: jobs(now_s),
        "/v1/alerts": lambda: alerts(now_s),
        "/v1/requests/known": lambda: request("known", now_s),
    }
    return answers[path]() if path in answers else None


EMPTY: dict[str, dict] = {
    "/v1/overview": {
        **overview(0.0, alerts=False),
        "services": [],
        "models": [],
        "totals": {
            "requests": 0,
            "per_s": 0.0,
            "errors": 0,
            "error_ratio": None,
            "p50_s": None,
            "p95_s": None,
            "p99_s": None,
            "rejected": 0,
            "consumer_lag": 0,
        },
    },
    "/v1/models": {"registry_offset": -1, "models": []},
    "/v1/hosts/series": {"from": 0, "to": 1, "step_s": 10, "hosts": []},
    "/v1/timeline": {"from": 0, "to": 1, "events": []},
    "/v1/jobs": {"jobs": []},
    "/v1/alerts": {"active": [], "history": [], "rules": []},
}
"""What a monitor answers that has just been started for the first time."""


def request(request_id: str, now_s: float) -> dict:
    """A request that succeeded; its id is repeated as it came."""
    timings = {"queue": 0.004, "compute_input": 0.0002, "compute_infer": 0.0031, "compute_output": 0.0001}
    story = [
        {"at": now_s - 0.0074, "what": "enqueued", "text": "aiaas.requests.digits/0 offset 17"},
        {"at": now_s - 0.0034, "what": "taken", "text": "into a batch of 4"},
        {"at": now_s, "what": "answered", "text": HOSTILE},
    ]
    outcome = {
        "model": "digits",
        "version": 2,
        "variant": "int8",
        "status": "succeeded",
        "error_code": None,
        "request": {"topic": "aiaas.requests.digits", "partition": 0, "offset": 17},
        "outcome": {"partition": 2, "offset": 5},
        "worker": "worker-1/9f",
        "tenant": None,
        "duplicate_of": None,
        "reexecuted": False,
        "registry_offset": 12,
        "artifact_sha256": "a" * 64,
        "input_sha256": "b" * 64,
        "output_sha256": "c" * 64,
        "batch": {"id": "d" * 32, "index": 0, "size": 4},
        "timings_s": {**timings, "total": sum(timings.values())},
        "story": story,
    }
    return {"request_id": request_id, "outcomes": [outcome]}
