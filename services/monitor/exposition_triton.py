"""The same counts under the names that Triton's own dashboards and scalers ask for.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html: names, labels
and units are Triton's (microseconds; no `_total`), and so is what is counted: rows as inferences, runs as executions,
sums of time over succeeded requests. As its counters lack the suffix that the text format's counters have, they are
untyped here; Prometheus makes no difference. What fits nothing of ours (cache, pinned memory, energy) is not there, and
neither is a `gpu_uuid`: GPUs are named by instance and index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.monitor.state import State
    from services.monitor.totals import Totals
    from shared.metric_events import GpuSample

_COUNTS: Final[tuple[tuple[str, str, Callable[[Totals], float]], ...]] = (
    ("request_success", "Number of successful inference requests", lambda totals: totals.success.count),
    ("count", "Number of inferences performed", lambda totals: totals.inferences),
    ("exec_count", "Number of model executions performed", lambda totals: totals.executions),
    ("request_duration_us", "Cumulative inference request duration in us", lambda totals: totals.success.ns / 1000),
    ("queue_duration_us", "Cumulative queuing duration in us", lambda totals: totals.queue.ns / 1000),
    (
        "compute_input_duration_us",
        "Cumulative compute input duration in us",
        lambda totals: totals.phases.compute_input.ns / 1000,
    ),
    (
        "compute_infer_duration_us",
        "Cumulative compute inference duration in us",
        lambda totals: totals.phases.compute_infer.ns / 1000,
    ),
    (
        "compute_output_duration_us",
        "Cumulative compute output duration in us",
        lambda totals: totals.phases.compute_output.ns / 1000,
    ),
)
_GPU: Final[tuple[tuple[str, str, Callable[[GpuSample], float | None]], ...]] = (
    ("utilization", "GPU utilization rate, 0 to 1", lambda gpu: gpu.utilisation_percent / 100),
    ("memory_used_bytes", "GPU used memory", lambda gpu: gpu.memory_used_bytes),
    ("memory_total_bytes", "GPU total memory", lambda gpu: gpu.memory_total_bytes),
    ("power_usage", "GPU power usage in watts", lambda gpu: gpu.power_w),
)
_REASONS: Final = {"cancelled": "CANCELED", "expired": "OTHER", "failed": "OTHER"}
"""Triton's reasons: what it rejects in its queue never gets an outcome here, and what fails in a backend can't be told
from what a caller got wrong by the status alone."""


def families(state: State) -> Iterator[Metric]:
    """All of them, as they are now."""
    every = [series for _, series in sorted(state.outcomes.series.items())]
    for name, text, value in _COUNTS:
        yield _metric(f"inference_{name}", text, [(_of(s.model, s.version), value(s.totals)) for s in every])
    failed: dict[tuple[str, int | None, str], int] = {}
    for series in every:
        for status, reason in _REASONS.items():
            key = series.model, series.version, reason
            failed[key] = failed.get(key, 0) + series.statuses[status]
    rows = [(_of(model, version) | {"reason": reason}, count) for (model, version, reason), count in failed.items()]
    yield _metric("inference_request_failure", "Number of failed inference requests", rows)
    yield _metric("inference_pending_request_count", "Requests awaiting execution", _pending(state))
    for name, text, reading in _GPU:
        yield _metric(f"gpu_{name}", text, list(_gpus(state, reading)))


def _of(model: str, version: int | None) -> dict[str, str]:
    return {"model": model, "version": str(version or "")}


def _pending(state: State) -> list[tuple[dict[str, str], float]]:
    waiting: dict[str, int] = {}
    for instance in state.instances():
        if instance.beat is not None:
            for counts in (instance.beat.lag, instance.beat.queued):
                for model, count in counts.items():
                    waiting[model] = waiting.get(model, 0) + count
    return [({"model": model, "version": ""}, count) for model, count in sorted(waiting.items())]


def _gpus(state: State, reading: Callable[[GpuSample], float | None]) -> Iterator[tuple[dict[str, str], float]]:
    for instance in state.instances():
        for gpu in instance.run.host.gpus if instance.run and instance.run.host else ():
            value = reading(gpu)
            if value is not None:
                yield {"instance": instance.name, "gpu": str(gpu.index)}, value


def _metric(name: str, text: str, rows: list[tuple[dict[str, str], Any]]) -> Metric:
    metric = Metric(f"nv_{name}", text, "unknown")
    for labels, value in rows:
        metric.add_sample(f"nv_{name}", labels, float(value))
    return metric
