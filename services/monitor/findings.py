"""What there is to find for each alert rule, from what the monitor knows now. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.monitor.alerts import Finding, Rule
from services.monitor.analysis import anomaly

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from services.monitor.analysis import Slo
    from services.monitor.drift import Watch
    from services.monitor.queries import Of
    from services.monitor.state import Instance
    from services.monitor.tally import Tally

WINDOW_S: Final = 60
"""Values are of the last minute."""
_LEAST_REQUESTS: Final = 20
"""Shares of fewer requests say nothing."""
RULES: Final = {
    rule.name: rule
    for rule in (
        Rule("errors", "critical", 0.05, 0.01, 5, "share of a version's requests that failed or expired"),
        Rule("latency_slo", "warning", 0.05, 0.01, 15, "share of a version's requests slower than promised"),
        Rule("rejections", "warning", 0.01, 0.001, 5, "share of requests that gateways refused (429, 503)"),
        Rule("lag", "warning", 1000, 100, 20, "records of a model that no worker has taken yet"),
        Rule("instance_lost", "critical", 0.5, 0.5, 0, "an instance has given no sign of life"),
        Rule("drift", "warning", 0.5, 0.5, 0, "inputs or outputs of a version differ from its first ones"),
        Rule("latency_anomaly", "warning", 8, 4, 20, "p95 above its median of the hour, in robust deviations"),
        Rule("host_memory", "warning", 0.95, 0.9, 30, "share of a host's memory in use"),
        Rule("disk", "critical", 0.9, 0.85, 30, "share of the disk in use, where the data lies"),
        Rule("event_loop", "warning", 1.0, 0.5, 20, "seconds that the event loop of an instance stood still"),
        Rule("gpu_temperature", "warning", 88, 83, 30, "degrees Celsius of a GPU"),
    )
}


def errors(tallies: Mapping[Of, Tally]) -> Iterator[Finding]:
    """Shares of requests without a result."""
    for (model, version), tally in _busy(tallies):
        ratio = tally.error_ratio or 0.0
        codes = ", ".join(f"{code}: {n}" for code, n in tally.error_codes.items())
        text = f"{ratio:.1%} of {tally.requests} requests to {_named(model, version)} failed or expired ({codes})"
        yield Finding(ratio, text, model, version)


def latency_slo(tallies: Mapping[Of, Tally], slos: Mapping[str, Slo]) -> Iterator[Finding]:
    """Shares of requests that took longer than promised, beyond what the promise allows."""
    for (model, version), tally in _busy(tallies):
        slo = slos[model]
        late = 1 - (tally.within(slo.latency_s) or 0.0)
        text = f"{late:.1%} of {tally.requests} requests to {_named(model, version)} took over {slo.latency_s:g} s"
        yield Finding(max(late - (1 - slo.latency_target), 0.0), text, model, version)


def rejections(nowhere: Tally) -> Iterator[Finding]:
    """Requests refused at the door."""
    answered = sum(nowhere.http.values())
    if answered >= _LEAST_REQUESTS:
        share = nowhere.rejected / answered
        yield Finding(share, f"gateways refused {nowhere.rejected} of {answered} requests ({share:.1%})")


def lag(instances: Sequence[Instance]) -> Iterator[Finding]:
    """Records that wait, by model: what the members of a group see of it adds up."""
    waiting: dict[str, int] = {}
    for instance in instances:
        if instance.beat and instance.up:
            for model, records in instance.beat.lag.items():
                waiting[model] = waiting.get(model, 0) + records
    for model, records in waiting.items():
        yield Finding(records, f"{records} requests to {model} wait in the log", model)


def instance_lost(instances: Sequence[Instance]) -> Iterator[Finding]:
    """Instances that were there within the hour."""
    for instance in instances:
        age_s = instance.sample_age_s or 0.0
        gone = not instance.up
        text = f"{instance.name} ({instance.service}) has given no sign of life for {age_s:.0f} s"
        yield Finding(float(gone), text, instance=instance.name)


def drift(watched: Mapping[str, Watch]) -> Iterator[Finding]:
    """Versions whose rows changed."""
    for watch in watched.values():
        worst = sorted((each for each in watch.compared if each.drifted), key=lambda each: -each.statistic)
        told = ", ".join(f"{each.feature} by {each.statistic:.2f}" for each in worst[:3])
        text = f"rows of {_named(watch.model, watch.version)} differ from its first ones: {told}"
        yield Finding(float(watch.alarm), text, watch.model, watch.version)


def latency_anomaly(minutes: Mapping[str, Sequence[Tally]]) -> Iterator[Finding]:
    """p95 of a model's last minute beside those of the hour before."""
    for model, tallies in minutes.items():
        if not tallies or tallies[-1].requests < _LEAST_REQUESTS:
            continue
        past = [each.latency()["p95"] or 0.0 for each in tallies[:-1] if each.requests >= _LEAST_REQUESTS]
        now_s = tallies[-1].latency()["p95"] or 0.0
        text = f"p95 of {model} is {now_s * 1000:.0f} ms, far above its last hour"
        yield Finding(anomaly(past, now_s), text, model)


def host(instances: Sequence[Instance]) -> Iterator[tuple[str, Finding]]:
    """What hosts are short of, by rule."""
    for instance in instances:
        sample = instance.run.host if instance.run and instance.up else None
        if sample is None:
            continue
        for rule, used, total, what in (
            ("host_memory", sample.host_memory_used_bytes, sample.host_memory_total_bytes, "memory"),
            ("disk", sample.disk_used_bytes, sample.disk_total_bytes, "disk"),
        ):
            share = used / total if total else 0.0
            yield (
                rule,
                Finding(share, f"{share:.0%} of the {what} of {instance.name} is in use", instance=instance.name),
            )
        text = f"the event loop of {instance.name} stood still for {sample.loop_delay_s:.1f} s"
        yield "event_loop", Finding(sample.loop_delay_s, text, instance=instance.name)
        for gpu in sample.gpus:
            text = f"GPU {gpu.index} of {instance.name} has {gpu.temperature_c} degrees"
            yield (
                "gpu_temperature",
                Finding(gpu.temperature_c or 0.0, text, instance=instance.name, part=f"gpu {gpu.index}"),
            )


def _busy(tallies: Mapping[Of, Tally]) -> Iterator[tuple[Of, Tally]]:
    return ((of, tally) for of, tally in tallies.items() if of[0] and tally.requests >= _LEAST_REQUESTS)


def _named(model: str, version: int | None) -> str:
    return model if version is None else f"{model} version {version}"
