"""What the monitor knows, as JSON: the same numbers as `exposition`, and where in the log they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

if TYPE_CHECKING:
    from services.monitor.fold import Series
    from services.monitor.histogram import Histogram
    from services.monitor.state import Instance, State
    from shared.metric_events import MetricEvent


def stats(state: State) -> dict[str, Any]:
    """Requests by model and version, and the offsets at which these numbers are exact."""
    outcomes, measurements = state.outcomes, state.measurements
    return {
        "models": [_series(series) for _, series in sorted(outcomes.series.items())],
        "ignored": dict(outcomes.ignored),
        "offsets": {str(partition): offset for partition, offset in sorted(outcomes.offsets.items())},
        "watermarks": {
            f"{topic}/{partition}": highest
            for (topic, partition), highest in sorted(outcomes.watermarks.highest.items())
        },
        "lag": state.lag(),
        "http_statuses": dict(measurements.http_statuses),
        "variants": [
            {
                "model": runs.model,
                "version": runs.version,
                "variant": runs.variant,
                "executions": runs.executions,
                "executions_by_size": {str(size): count for size, count in sorted(runs.sizes.items())},
                "compute_infer_ns": runs.compute_infer_ns,
            }
            for _, runs in sorted(measurements.variants.items())
        ],
        "jobs": [_fields(event) for _, event in sorted(measurements.jobs.items())],
        "metrics_ignored": dict(measurements.ignored),
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "model": series.model,
        "version": series.version,
        "outcomes": dict(series.statuses),
        "errors": dict(series.error_codes),
        "duplicates": series.duplicates,
        "reexecuted": series.reexecuted,
        "executions": series.totals.executions,
        "requests_by_batch_size": {str(size): count for size, count in sorted(series.batch_sizes.items())},
        "latency": {phase: _latency(histogram) for phase, histogram in series.phases.items()},
    }


def _latency(histogram: Histogram) -> dict[str, Any]:
    return {
        "count": histogram.count,
        "sum_ns": histogram.sum_ns,
        "p50_s": histogram.quantile_s(0.50),
        "p95_s": histogram.quantile_s(0.95),
        "p99_s": histogram.quantile_s(0.99),
    }


def _fields(event: MetricEvent) -> dict[str, Any]:
    """What an event says, without the version of its form."""
    fields: dict[str, Any] = to_builtins(event)
    del fields["schema"]
    return fields


def hosts(state: State) -> list[dict[str, Any]]:
    """The last host sample of every instance."""
    return [
        {**_fields(instance.run.host), "up": instance.up, "age_s": instance.sample_age_s}
        for instance in state.instances()
        if instance.run and instance.run.host
    ]


def instances(state: State) -> list[dict[str, Any]]:
    """Every instance heard of within the hour: whether it is up, what it has loaded, what waits for it."""
    return [_instance(instance) for instance in state.instances()]


def _instance(instance: Instance) -> dict[str, Any]:
    beat = instance.beat
    return {
        "instance": instance.name,
        "service": instance.service,
        "incarnation": instance.incarnation,
        "up": instance.up,
        "sample_age_s": instance.sample_age_s,
        "http_in_flight": instance.run.http_in_flight if instance.run else None,
        "machine": to_builtins(beat.machine) if beat else None,
        "registry_offset": beat.registry_offset if beat else None,
        "loaded": to_builtins(beat.loaded) if beat else [],
        "lag": beat.lag if beat else {},
        "queued": beat.queued if beat else {},
    }
