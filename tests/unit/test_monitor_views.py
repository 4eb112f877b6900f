"""What the monitor shows: the same numbers for Prometheus and as JSON."""

from __future__ import annotations

import time

from httpx import ASGITransport, AsyncClient
from prometheus_client.parser import text_string_to_metric_families

from services.monitor.routes import application
from services.monitor.settings import MonitorSettings
from services.monitor.state import State
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat, LoadedModel
from shared.metric_events import GpuSample, HostSampled, HttpAnswered
from shared.outcome_events import Timings
from support.facts import receipt
from support.strategies import required

SAMPLE = dict.fromkeys(required(HostSampled), 1)


def state_of(now_ns: int) -> State:
    state = State(metrics_interval_s=5)
    for offset in range(4):
        timings = Timings(queue=3_000_000, compute_infer=1_000_000)
        state.outcomes.add([(0, offset, receipt(offset, model_version=2, timings_ns=timings), 0)])
    state.outcomes.add([(0, 4, receipt(4, status="failed", error_code="invalid_input"), 0)])
    state.outcomes.add([(0, 5, receipt(4, status="failed", error_code="invalid_input"), 0)])
    gpu = GpuSample(index=0, name="H", utilisation_percent=40, memory_used_bytes=2, memory_total_bytes=3, power_w=70)
    about = {"instance": "w", "incarnation": "i", "service": "worker", "at_ns": now_ns}
    state.measurements.add(HostSampled(**{**SAMPLE, **about, "seq": 1, "gpus": (gpu,)}), now_ns)
    state.measurements.add(HttpAnswered(**{**about, "instance": "g"}, seq=1, statuses={200: 9}, in_flight=2), now_ns)
    loaded = LoadedModel(model="m", version=2, variant="fp32", artifact_sha256="0" * 64, byte_size=10)
    machine = MachineClass(isa="avx2")
    about = {"instance": "w", "incarnation": "i", "service": "worker", "registry_offset": 3, "interval_s": 2}
    beat = Heartbeat(**about, machine=machine, loaded=(loaded,), lag={"m": 7}, queued={"m": 1})
    state.alive = lambda: [beat]
    return state


def client_of(state: State) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(application(state, MonitorSettings(), {})), base_url="http://monitor")


async def samples(client: AsyncClient) -> dict[tuple, float]:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


async def test_prometheus_and_json_agree():
    client = client_of(state_of(time.time_ns()))
    shown = await samples(client)
    m2 = (("model", "m"), ("version", "2"))
    assert shown["aiaas_requests_total", ("model", "m"), ("status", "succeeded"), ("version", "2")] == 4
    assert shown["aiaas_request_errors_total", ("code", "invalid_input"), ("model", "m"), ("version", "")] == 1
    assert shown["aiaas_outcomes_ignored_total", ("reason", "repeat")] == 1
    assert shown["aiaas_request_duration_seconds_count", m2[0], ("phase", "total"), m2[1]] == 4
    assert shown["aiaas_request_duration_seconds_sum", m2[0], ("phase", "total"), m2[1]] == 0.016
    assert shown["aiaas_instance_up", ("instance", "w"), ("service", "worker")] == 1
    assert shown["aiaas_consumer_lag", ("instance", "w"), ("model", "m")] == 7
    assert shown["aiaas_http_responses_total", ("status", "200")] == 9
    gpu = (("gpu", "0"), ("instance", "w"), ("name", "H"), ("service", "worker"))
    assert shown["aiaas_gpu_power_watts", *gpu] == 70
    assert ("aiaas_gpu_temperature_celsius", *gpu) not in shown  # this GPU does not tell

    stats = (await client.get("/v1/stats")).json()
    [_, second] = stats["models"]
    assert (second["version"], second["outcomes"]) == (2, {"succeeded": 4})
    assert second["latency"]["queue"]["count"] == 4
    assert 0.002 <= second["latency"]["total"]["p95_s"] <= 0.005
    assert stats["offsets"] == {"0": 6}
    assert stats["watermarks"] == {"t.requests.m/0": 4}
    [host] = (await client.get("/v1/hosts")).json()
    assert (host["instance"], host["gpus"][0]["utilisation_percent"]) == ("w", 40)
    instances = {row["instance"]: row for row in (await client.get("/v1/instances")).json()}
    assert instances["w"]["loaded"][0]["variant"] == "fp32"
    assert (instances["g"]["up"], instances["g"]["http_in_flight"]) == (True, 2)


async def test_an_instance_that_fell_silent_is_down():
    state = state_of(time.time_ns() - 60 * 10**9)
    state.alive = list
    shown = await samples(client_of(state))
    assert shown["aiaas_instance_up", ("instance", "w"), ("service", "worker")] == 0


async def test_ready_says_what_it_waits_for():
    state = State(metrics_interval_s=5)
    client = client_of(state)
    assert (await client.get("/live")).json() == {"live": True}
    assert (await client.get("/ready")).status_code == 503
    assert (await client.get("/ready")).json() == {"ready": False, "waiting_for": "kafka"}
    state.waiting_for = lambda: None
    assert (await client.get("/ready")).json() == {"ready": True}
