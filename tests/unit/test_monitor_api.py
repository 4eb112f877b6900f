"""The API over time, on a history in a directory and without Kafka: shapes as docs/monitor.md has them, and numbers."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient

from services.monitor import metering
from services.monitor.history import History
from services.monitor.queries import Happening
from services.monitor.routes import application
from services.monitor.settings import MonitorSettings
from services.monitor.state import State
from shared.codec import rfc3339
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat, LoadedModel
from shared.metric_events import Feature, GpuSample, HostSampled, HttpAnswered, JobProgressed, RowsObserved
from shared.outcome_events import BatchMembership, Timings
from support.facts import folded, made_ready, receipt, uploaded
from support.strategies import required

SETTINGS = MonitorSettings()
DOCUMENT = Path(__file__).parents[2] / "docs" / "monitor.md"
SAMPLE = dict.fromkeys(required(HostSampled), 1)

OPEN = {"measurements", "errors", "curves", "lag", "queued"}
"""Maps whose keys are what there is."""


@pytest.fixture
def state(tmp_path):
    now_ns = time.time_ns()
    state = State(5.0, waiting_for=lambda: None, history=History(tmp_path))
    state.outcomes.sink = state.recorder
    state.registry = lambda: folded(uploaded(), *made_ready())
    for offset in range(100):
        failed = offset % 10 == 0
        about = {
            "status": "failed" if failed else "succeeded",
            "error_code": "execution_failed" if failed else None,
            "model_version": 1,
            "batch": BatchMembership(id="b", index=offset % 4, size=4, padding=0, members_sha256="0", rows=1),
            "timings_ns": Timings(queue=offset * 10**6, compute_input=10**4, compute_infer=10**6, compute_output=10**3),
            "completed_at": rfc3339(now_ns),
        }
        state.outcomes.add([(0, offset, receipt(offset, **about), now_ns // 10**6)])
    gpu = GpuSample(index=0, name="g", utilisation_percent=50, memory_used_bytes=2, memory_total_bytes=3)
    about = {"instance": "worker-1", "incarnation": "i", "service": "worker", "at_ns": now_ns}
    events = [
        HostSampled(**{**SAMPLE, **about, "seq": 1, "gpus": (gpu,), "cpu_percent": 50.0}),
        JobProgressed(
            **about, seq=2, model="m", version=2, attempt=1, step="t", fraction=0.5, points={"loss": (1, 0.5)}
        ),
        RowsObserved(**about, seq=3, model="m", version=1, variant="v", rows=2000, features={"input/x/0": CONSTANT}),
        RowsObserved(**about, seq=4, model="m", version=1, variant="v", rows=300, features={"input/x/0": CONSTANT}),
        HttpAnswered(**about, seq=5, statuses={200: 90, 503: 15}, in_flight=1, unready=5),
    ]
    for event in events:
        assert metering.take(state, event, now_ns, SETTINGS.sensitivity)
    state.recorder.event(now_ns / 1e9, "alert", "raised: m is slow", model="m", detail='{"change":"raised"}')
    state.deploys.lines.append(Happening(now_ns / 1e9, "deploy", "m version 1 was promoted", "m", 1))
    beat = Heartbeat(
        instance="worker-1",
        incarnation="i",
        service="worker",
        machine=MachineClass(isa="avx2"),
        loaded=(LoadedModel(model="m", version=1, variant="v", artifact_sha256="0", byte_size=1),),
        registry_offset=1,
        lag={"m": 5},
        interval_s=2,
    )
    state.alive = lambda: [beat]
    return state


CONSTANT = Feature(kind="number", bins={3: 100})


@pytest.fixture
async def get(state):
    app = application(state, SETTINGS, {})

    async def get(path, status=200):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://monitor") as client:
            response = await client.get(path)
        assert response.status_code == status, response.text
        return response.json()

    return get


def documented() -> dict[str, object]:
    """The examples of the document, by route."""
    text = DOCUMENT.read_text()
    return {
        route: json.loads(example)
        for route, example in re.findall(r"^### `(/v1/[^`]*)`\n\n```json\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    }


def assert_as_documented(shown, example, where=""):
    """Every field of the example is there, of the same kind; empty examples say nothing of what is in them."""
    if isinstance(example, dict):
        assert isinstance(shown, dict), where
        numbered = [key for key in example if key.isdigit()]
        for key in [key for key in example if key not in numbered]:
            assert key in shown or where.endswith(("measurements", "errors", "curves", "lag", "queued")), (
                f"{where}.{key}"
            )
            if key in shown:
                assert_as_documented(shown[key], example[key], f"{where}.{key}")
    elif isinstance(example, list):
        assert isinstance(shown, list), where
        if shown and example:
            assert_as_documented(shown[0], example[0], f"{where}[]")
    elif shown is not None and example is not None:
        kinds = (int, float) if type(example) in (int, float) else type(example)
        assert isinstance(shown, kinds), where


@pytest.mark.parametrize(
    ("route", "path"),
    [
        ("/v1/overview", "/v1/overview"),
        ("/v1/hosts/series", "/v1/hosts/series?from=-5m"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/{model}/series", "/v1/models/m/series?from=-5m"),
        ("/v1/analysis", "/v1/analysis?from=-5m"),
        ("/v1/drift", "/v1/drift"),
        ("/v1/jobs", "/v1/jobs"),
        ("/v1/alerts", "/v1/alerts"),
        ("/v1/timeline", "/v1/timeline?from=-5m"),
        ("/v1/requests/{id}", "/v1/requests/t.requests.m-0-7"),
    ],
)
async def test_answers_have_the_documented_shape(get, route, path):
    shown = await get(path)
    assert_as_documented(shown, documented()[route])


async def test_the_numbers_of_a_series(get):
    shown = await get("/v1/models/m/series?from=-5m&version=1")
    assert {name: shown["totals"][name] for name in ("requests", "succeeded", "failed")} == {
        "requests": 100,
        "succeeded": 90,
        "failed": 10,
    }
    assert sum(shown["requests"]["succeeded"]) == 90
    assert sum(shown["errors"]["execution_failed"]) == 10
    assert shown["batch_size"]["histogram"] == {"4": 100}
    assert shown["totals"]["latency_s"]["queue"]["p50"] == pytest.approx(0.0495, rel=0.02)
    assert shown["totals"]["latency_s"]["queue"]["mean"] == pytest.approx(0.0495)
    assert len(shown["at"]) == len(shown["lag"]) == len(shown["latency_s"]["total"]["p99"])


async def test_the_numbers_of_an_analysis(get):
    [found] = (await get("/v1/analysis?from=-5m"))["models"]
    assert found["bottleneck"]["phase"] == "queue"
    assert found["capacity_per_s"] > 0
    assert found["cost_per_1000"] > 0
    assert found["slo"]["availability"] == pytest.approx(0.9)
    assert found["slo"]["error_budget_spent"] == pytest.approx(100)


async def test_what_gateways_refused_is_of_no_model(get):
    totals = (await get("/v1/overview"))["totals"]
    assert (totals["rejected"], totals["requests"]) == (10, 100)


async def test_hosts_and_gpus(get):
    [host] = (await get("/v1/hosts/series?from=-5m"))["hosts"]
    assert max(each or 0 for each in host["cpu_percent"]["mean"]) == 50
    assert max(each or 0 for each in host["gpus"][0]["utilisation_percent"]["max"]) == 50


async def test_what_is_wrong_with_a_query_is_said(get):
    for path in ("/v1/models/m/series?from=then", "/v1/models/m/series?step_s=0", "/v1/hosts/series?to=-2h&from=-1h"):
        assert (await get(path, 400))["code"] == "invalid_input"
    assert (await get("/v1/models/x/series", 404))["code"] == "unknown_model"
    assert (await get("/v1/requests/x", 404))["code"] == "unknown_request"


async def test_before_the_log_is_known_there_is_nothing_to_ask():
    app = application(State(5.0), SETTINGS, {})
    async with AsyncClient(transport=ASGITransport(app), base_url="http://monitor") as client:
        assert (await client.get("/v1/overview")).json()["ready"] is False
        assert (await client.get("/v1/timeline")).status_code == 503
