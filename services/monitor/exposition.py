"""What the monitor knows, for Prometheus: a collector over the state, which renders on each scrape.

Names and units follow https://prometheus.io/docs/practices/naming/ (base units, ratios from 0 to 1, `_total`); Triton's
stand beside them (`exposition_triton`). Histograms have fixed bounds, so they aggregate. Counters never go down while
the state lives, and the state outlives the process. `version` is empty where no version was chosen. `aiaas_batch_size`
counts requests by the size of the batch they ran in (see `services.monitor.fold`). `instance` is the instance that a
number is of, not the monitor: scrape with `honor_labels`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from services.monitor import exposition_triton
from services.monitor.findings import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric

    from services.monitor.fold import Series
    from services.monitor.state import Instance, State
    from shared.metric_events import GpuSample, HostSampled

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_SERIES: tuple[tuple[str, str, Callable[[Series], int]], ...] = (
    ("request_duplicates", "Requests answered with the outcome of another.", lambda series: series.duplicates),
    ("request_reexecutions", "Requests that were run again after a crash.", lambda series: series.reexecuted),
    ("executions", "Runs of a model that succeeded.", lambda series: series.totals.executions),
)
_HOST: tuple[tuple[str, str, Callable[[HostSampled], float]], ...] = (
    ("process_cpu_ratio", "CPU of the process; 1 is one core.", lambda host: host.cpu_percent / 100),
    ("process_resident_memory_bytes", "Resident memory of the process.", lambda host: host.rss_bytes),
    ("process_event_loop_delay_seconds", "Largest delay in the last interval.", lambda host: host.loop_delay_s),
    ("host_cpu_ratio", "CPU of the host, all cores together 1.", lambda host: host.host_cpu_percent / 100),
    ("host_memory_used_bytes", "Memory in use on the host.", lambda host: host.host_memory_used_bytes),
    ("host_memory_total_bytes", "Memory of the host.", lambda host: host.host_memory_total_bytes),
    ("host_disk_used_bytes", "Disk in use where the data lies.", lambda host: host.disk_used_bytes),
    ("host_disk_total_bytes", "Disk where the data lies.", lambda host: host.disk_total_bytes),
)
_HOST_COUNTERS: tuple[tuple[str, str, Callable[[HostSampled], float]], ...] = (
    ("host_disk_read_bytes", "Bytes the host read from disks.", lambda host: host.disk_read_bytes),
    ("host_disk_written_bytes", "Bytes the host wrote to disks.", lambda host: host.disk_written_bytes),
    ("host_network_received_bytes", "Bytes the host received.", lambda host: host.network_received_bytes),
    ("host_network_sent_bytes", "Bytes the host sent.", lambda host: host.network_sent_bytes),
)
_GPU: tuple[tuple[str, str, Callable[[GpuSample], float | None]], ...] = (
    ("gpu_utilization_ratio", "Utilization of the GPU, 0 to 1.", lambda gpu: gpu.utilisation_percent / 100),
    ("gpu_memory_used_bytes", "GPU memory in use.", lambda gpu: gpu.memory_used_bytes),
    ("gpu_memory_total_bytes", "GPU memory.", lambda gpu: gpu.memory_total_bytes),
    ("gpu_power_watts", "Power drawn by the GPU.", lambda gpu: gpu.power_w),
    ("gpu_temperature_celsius", "Temperature of the GPU.", lambda gpu: gpu.temperature_c),
)

Row = tuple[Any, ...]
"""Label values, and the number."""


class Exposition(Collector):
    """Renders the state when it is scraped."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        yield from _requests(self._state)
        yield from _services(self._state)
        instances = self._state.instances()
        yield from _hosts(instances)
        yield from _workers(instances)
        yield _alerts(self._state)
        yield from _drift(self._state)
        yield from exposition_triton.families(self._state)


def _family(kind: type[Any], name: str, text: str, labels: Iterable[str], rows: Iterable[Row]) -> Metric:
    """A metric from its rows."""
    family = kind(f"aiaas_{name}", text, labels=tuple(labels))
    for *values, number in rows:
        family.add_metric(["" if value is None else str(value) for value in values], float(number))
    metric: Metric = family
    return metric


def _requests(state: State) -> Iterator[Metric]:
    every = [series for _, series in sorted(state.outcomes.series.items())]
    of = ("model", "version")
    rows: list[Row] = [(s.model, s.version, status, n) for s in every for status, n in s.statuses.items()]
    yield _family(CounterMetricFamily, "requests", "Requests by outcome.", (*of, "status"), rows)
    rows = [(s.model, s.version, code, n) for s in every for code, n in s.error_codes.items()]
    yield _family(CounterMetricFamily, "request_errors", "Requests without a result, by code.", (*of, "code"), rows)
    for name, text, value in _SERIES:
        yield _family(CounterMetricFamily, name, text, of, [(s.model, s.version, value(s)) for s in every])
    rows = [(s.model, s.version, s.totals.last_success_ms / 1000) for s in every if s.totals.last_success_ms]
    yield _family(GaugeMetricFamily, "last_success_timestamp_seconds", "When a request last succeeded.", of, rows)
    yield _durations(every)
    yield _batch_sizes(every)
    rows = list(state.outcomes.ignored.items())
    yield _family(CounterMetricFamily, "outcomes_ignored", "Outcome records that do not count.", ["reason"], rows)
    rows = sorted(state.outcomes.offsets.items())
    yield _family(GaugeMetricFamily, "outcomes_offset", "Where the counts hold: the next offset.", ["partition"], rows)
    yield _family(GaugeMetricFamily, "outcomes_lag", "Outcome records not yet counted.", [], [(state.lag(),)])


def _durations(every: list[Series]) -> Metric:
    text = "Time a request spent, by phase; total is their sum."
    family = HistogramMetricFamily("aiaas_request_duration_seconds", text, labels=["model", "version", "phase"])
    for series in every:
        for phase, histogram in series.phases.items():
            labels = [series.model, str(series.version or ""), phase]
            family.add_metric(labels, histogram.cumulative(), histogram.sum_ns / 1e9)
    return family


def _batch_sizes(every: list[Series]) -> Metric:
    text = "Requests by the size of the batch they ran in."
    family = HistogramMetricFamily("aiaas_batch_size", text, labels=["model", "version"])
    for series in every:
        sizes = series.batch_sizes
        buckets = [(str(bound), sum(n for size, n in sizes.items() if size <= bound)) for bound in BATCH_BOUNDS]
        buckets.append(("+Inf", sizes.total()))
        total = sum(size * n for size, n in sizes.items())
        family.add_metric([series.model, str(series.version or "")], buckets, total)
    return family


def _alerts(state: State) -> Metric:
    rows: list[Row] = []
    for held in state.alerts.active.values():
        found, rule = held.finding, RULES.get(held.rule)
        if rule is not None:  # one of an older monitor's rules may still stand in a snapshot
            rows.append((rule.name, rule.severity, found.model, found.version, found.instance, found.part, 1))
    of = ("rule", "severity", "model", "version", "instance", "part")
    return _family(GaugeMetricFamily, "alert_active", "Alerts of the monitor that are raised.", of, rows)


def _drift(state: State) -> Iterator[Metric]:
    """By tensor, the feature that is farthest away: a series for each would be 32 a version."""
    watched = sorted(state.drift.watched.items())
    rows: list[Row] = [(each.model, each.version, each.windows) for _, each in watched]
    of = ("model", "version")
    yield _family(CounterMetricFamily, "drift_windows", "Windows of rows that were compared.", of, rows)
    rows = []
    for _, each in watched:
        farthest: dict[str, float] = {}
        for found in each.compared:
            tensor = found.feature.rpartition("/")[0]
            farthest[tensor] = max(farthest.get(tensor, 0.0), found.statistic)
        rows += [(each.model, each.version, tensor, distance) for tensor, distance in farthest.items()]
    text = "Largest distance of a feature of a tensor from its first rows, 0 to 1."
    yield _family(GaugeMetricFamily, "drift_distance_ratio", text, (*of, "tensor"), rows)


def _services(state: State) -> Iterator[Metric]:
    measured = state.measurements
    rows: list[Row] = sorted(measured.http_statuses.items())
    yield _family(CounterMetricFamily, "http_responses", "Answers of gateways.", ["status"], rows)
    of = ("model", "version", "variant")
    rows = [(runs.model, runs.version, runs.variant, runs.executions) for runs in measured.variants.values()]
    yield _family(CounterMetricFamily, "worker_executions", "Runs of a variant, as workers counted them.", of, rows)
    rows = [(job.model, job.version, job.attempt, job.step, job.fraction) for job in measured.jobs.values()]
    labels = ("model", "version", "attempt", "step")
    yield _family(GaugeMetricFamily, "optimizer_job_progress_ratio", "How far a job is, from 0 to 1.", labels, rows)
    rows = sorted(measured.ignored.items())
    yield _family(CounterMetricFamily, "metric_events_ignored", "Metric events not counted.", ["reason"], rows)


def _hosts(instances: list[Instance]) -> Iterator[Metric]:
    of = ("instance", "service")
    rows: list[Row] = [(i.name, i.service, i.up) for i in instances]
    yield _family(GaugeMetricFamily, "instance_up", "Whether an instance was heard of lately.", of, rows)
    sampled = [(i.name, i.service, i.run.host) for i in instances if i.run and i.run.host]
    for name, text, value in _HOST:
        rows = [(instance, service, value(host)) for instance, service, host in sampled]
        yield _family(GaugeMetricFamily, name, text, of, rows)
    for name, text, value in _HOST_COUNTERS:
        rows = [(instance, service, value(host)) for instance, service, host in sampled]
        yield _family(CounterMetricFamily, name, text, of, rows)
    for name, text, reading in _GPU:
        readings = [(i, s, gpu.index, gpu.name, reading(gpu)) for i, s, host in sampled for gpu in host.gpus]
        rows = [row for row in readings if row[-1] is not None]
        yield _family(GaugeMetricFamily, name, text, (*of, "gpu", "name"), rows)


def _workers(instances: list[Instance]) -> Iterator[Metric]:
    beats = [instance.beat for instance in instances if instance.beat]
    rows: list[Row] = [(beat.instance, model, n) for beat in beats for model, n in beat.lag.items()]
    yield _family(GaugeMetricFamily, "consumer_lag", "Requests not yet taken.", ("instance", "model"), rows)
    rows = [(beat.instance, model, n) for beat in beats for model, n in beat.queued.items()]
    yield _family(GaugeMetricFamily, "queued_requests", "Requests taken, not answered.", ("instance", "model"), rows)
    rows = [
        (beat.instance, loaded.model, loaded.version, loaded.variant, loaded.byte_size)
        for beat in beats
        for loaded in beat.loaded
    ]
    of = ("instance", "model", "version", "variant")
    yield _family(GaugeMetricFamily, "loaded_model_bytes", "Variants in memory, by size.", of, rows)
    rows = [(i.name, i.service, i.run.http_in_flight) for i in instances if i.run and i.run.http_in_flight is not None]
    yield _family(GaugeMetricFamily, "http_in_flight", "Requests a gateway is serving.", ("instance", "service"), rows)
