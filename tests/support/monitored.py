"""A monitor's state in which everything there can be to tell is told: every metric has a sample."""

from __future__ import annotations

import time

from services.monitor.alerts import Finding, Standing
from services.monitor.drift import Compared, Watch
from services.monitor.state import State
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat, LoadedModel
from shared.metric_events import BatchesRan, GpuSample, HostSampled, HttpAnswered, JobProgressed
from shared.outcome_events import BatchMembership, Timings
from support.facts import receipt
from support.strategies import required

MACHINE = MachineClass(isa="avx2")


def state_of_everything(now_ns: int | None = None) -> State:
    """Two batches of two, a failure, a repeat, a worker with a GPU, a gateway, a job, and an alert."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    state = State(metrics_interval_s=5)
    timings = Timings(queue=3_000_000, compute_input=1_000, compute_infer=1_000_000, compute_output=500)
    for offset in range(4):
        about = {"id": f"b{offset // 2}", "index": offset % 2, "size": 2, "padding": 0, "members_sha256": "0" * 64}
        batch = BatchMembership(**about, rows=1, total_rows=2)
        state.outcomes.add([(0, offset, receipt(offset, model_version=2, timings_ns=timings, batch=batch), 1_000)])
    failed = receipt(4, model_version=2, status="failed", error_code="execution_failed")
    state.outcomes.add([(0, 4, failed, 1_000)])
    state.outcomes.add([(0, 5, failed, 1_000)])
    for event in _measured(now_ns):
        state.measurements.add(event, now_ns)
    loaded = LoadedModel(model="m", version=2, variant="fp32", artifact_sha256="0" * 64, byte_size=10)
    about = {"instance": "w", "incarnation": "i", "service": "worker", "machine": MACHINE, "registry_offset": 3}
    beat = Heartbeat(**about, loaded=(loaded,), lag={"m": 7}, queued={"m": 1}, interval_s=2)
    state.alive = lambda: [beat]
    finding = Finding(1.0, "inputs differ", model="m", version=2)
    compared = [
        Compared("input/x/mean", "number", 0.4, 1e-9, drifted=True),
        Compared("input/x/std", "number", 0.1, 0.5, drifted=False),
    ]
    state.drift.watched["m/2"] = Watch("m", 2, compared=compared, windows=2, in_a_row=2, alarm=True)
    state.alerts.standing["drift/m/2"] = Standing("drift", finding, raised_s=1.0)
    return state


def _measured(now_ns: int):
    gpu = GpuSample(
        index=0,
        name="H",
        utilisation_percent=40,
        memory_used_bytes=2,
        memory_total_bytes=3,
        power_w=70,
        temperature_c=50,
    )
    of_worker = {"instance": "w", "incarnation": "i", "service": "worker", "at_ns": now_ns}
    of_gateway = {**of_worker, "instance": "g", "service": "gateway"}
    job = {"model": "m", "version": 3, "attempt": 1, "step": "train", "fraction": 0.5}
    ran = {"model": "m", "version": 2, "variant": "fp32", "executions": 2, "sizes": {2: 2}, "compute_infer_ns": 2}
    yield HostSampled(**{**dict.fromkeys(required(HostSampled), 1), **of_worker, "seq": 1, "gpus": (gpu,)})
    yield BatchesRan(**of_worker, seq=2, **ran)
    yield BatchesRan(**of_worker, seq=2, **ran)  # a repeat
    yield HttpAnswered(**of_gateway, seq=1, statuses={200: 9, 503: 1}, in_flight=2)
    yield JobProgressed(**{**of_worker, "instance": "o", "service": "optimizer"}, seq=1, **job)
