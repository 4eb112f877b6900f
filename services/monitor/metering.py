"""A metric event as rows of the history: gauges by window, counts of answers, and who started.

Time is the event's own; one that lies in the future is of now, and one older than a day is too late for any window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shared.metric_events import HostSampled, HttpAnswered, RowsObserved

if TYPE_CHECKING:
    from services.monitor.drift import Sensitivity
    from services.monitor.recorder import Recorder
    from services.monitor.state import State
    from shared.metric_events import GpuSample, MetricEvent

OLDEST_NS: Final = 86_400 * 10**9
_HOST: Final = (
    "cpu_percent",
    "rss_bytes",
    "loop_delay_s",
    "host_cpu_percent",
    "host_memory_used_bytes",
    "host_memory_total_bytes",
    "disk_used_bytes",
    "disk_total_bytes",
)
_TOTALS: Final = ("disk_read_bytes", "disk_written_bytes", "network_received_bytes", "network_sent_bytes")
"""They only grow; the largest of a window is what it was at its end."""
_GPU: Final = ("utilisation_percent", "memory_used_bytes", "memory_total_bytes", "power_w", "temperature_c")
GAUGES: Final = _HOST
COUNTERS: Final = _TOTALS
GPU_GAUGES: Final = _GPU


def take(state: State, event: MetricEvent, now_ns: int, how: Sensitivity) -> bool:
    """Add an event to the measurements and, if it is no repeat, to the rows; whether it was none."""
    recorder, measurements = state.recorder, state.measurements
    before = measurements.last_run(event.instance)
    known = f"{event.instance}/{event.incarnation}" in measurements.runs
    was_lost = before is not None and before.lost
    if not measurements.add(event, now_ns):
        return False
    at_s = min(event.at_ns, now_ns) / 1e9
    if event.at_ns < now_ns - OLDEST_NS:
        return True
    who = f"{event.instance} ({event.service})"
    if not known and before is not None:
        gone_s = max(at_s - before.at_ns / 1e9, 0)
        text = f"{who} started again, {gone_s:.0f} s after its last sign of life"
        recorder.event(at_s, "restart", text, instance=event.instance)
    elif not known:
        recorder.event(at_s, "start", f"{who} started", instance=event.instance)
    elif was_lost:
        recorder.event(at_s, "start", f"{who} is heard of again", instance=event.instance)
    if isinstance(event, RowsObserved):
        _observe(state, event, how)
    else:
        _record(recorder, event, at_s)
    return True


def _observe(state: State, event: RowsObserved, how: Sensitivity) -> None:
    """Rows that may have drifted; the distances of a window that is full go into the history."""
    watch = state.drift.add(event, how)
    for each in watch.compared if watch else ():
        state.recorder.sample(
            event.at_ns / 1e9,
            f"drift/{each.feature}",
            each.statistic,
            instance=f"version {event.version}",
            model=event.model,
        )


def _record(recorder: Recorder, event: MetricEvent, at_s: float) -> None:
    if isinstance(event, HostSampled):
        for gauge in (*_HOST, *_TOTALS):
            recorder.sample(at_s, gauge, float(getattr(event, gauge)), instance=event.instance, service=event.service)
        for gpu in event.gpus:
            _record_gpu(recorder, event, gpu, at_s)
    elif isinstance(event, HttpAnswered):
        recorder.sample(at_s, "in_flight", event.in_flight, instance=event.instance, service=event.service)
        for status, count in event.statuses.items():
            known = 100 <= status <= 599  # noqa: PLR2004 - HTTP's range
            recorder.count(at_s, f"http/{status}" if known else "http/other", count)
        recorder.count(at_s, "unready", event.unready)


def _record_gpu(recorder: Recorder, event: HostSampled, gpu: GpuSample, at_s: float) -> None:
    for gauge in _GPU:
        value = getattr(gpu, gauge)
        if value is not None:
            recorder.sample(
                at_s,
                f"gpu_{gauge}",
                float(value),
                instance=event.instance,
                service=event.service,
                gpu=gpu.index,
            )
