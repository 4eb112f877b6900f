"""One look: who is up, what came of the last minute's requests, and what is wrong. Shapes: docs/monitor.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from services.monitor import analysis
from services.monitor.findings import RULES
from services.monitor.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from msgspec import Struct

    from services.monitor.alerts import Standing
    from services.monitor.drift import Sensitivity
    from services.monitor.queries import Happening, Of
    from services.monitor.state import Instance, State

WINDOW_S: Final = 60


def overview(state: State, tallies: Mapping[Of, Tally], offsets: Mapping[int, int], now_s: float) -> dict[str, Any]:
    """The whole; `tallies` are of the last minute, exact at these offsets of the outcome log."""
    waiting_for = state.waiting_for()
    everything, nowhere = Tally(), tallies.get(("", None), Tally())
    for (model, _), tally in tallies.items():
        if model:
            everything.merge(tally)
    instances = state.instances(int(now_s * 1e9))
    return {
        "at": now_s,
        "ready": waiting_for is None,
        "waiting_for": waiting_for,
        "window_s": WINDOW_S,
        "offsets": {str(partition): offset for partition, offset in sorted(offsets.items())},
        "lag": state.lag(),
        "totals": {
            **_counted(everything),
            "errors": everything.errors,
            "rejected": nowhere.rejected,
            "consumer_lag": sum(sum(each.beat.lag.values()) for each in instances if each.beat and each.up),
        },
        "services": [_service(instance) for instance in instances],
        "models": [
            {
                "model": series.model,
                "version": series.version,
                **_counted(tallies.get((series.model, series.version), Tally())),
                **_more(tallies.get((series.model, series.version), Tally())),
                "last_success_age_s": max(now_s - series.totals.last_success_ms / 1000, 0.0)
                if series.totals.last_success_ms
                else None,
            }
            for _, series in sorted(state.outcomes.series.items())
        ],
        "alerts": active(state.alerts.active),
    }


def _counted(tally: Tally) -> dict[str, Any]:
    latency = tally.latency()
    return {
        "requests": tally.requests,
        "per_s": tally.requests / WINDOW_S,
        "error_ratio": tally.error_ratio,
        "p50_s": latency["p50"],
        "p95_s": latency["p95"],
        "p99_s": latency["p99"],
    }


def _more(tally: Tally) -> dict[str, Any]:
    slowest = analysis.bottleneck(tally)
    return {
        "outcomes": tally.outcomes,
        "mean_batch_size": tally.mean_batch_size,
        "bottleneck": slowest[0] if slowest else None,
    }


def _service(instance: Instance) -> dict[str, Any]:
    run, beat = instance.run, instance.beat
    host = run.host if run else None
    return {
        "instance": instance.name,
        "service": instance.service,
        "up": instance.up,
        "incarnation": instance.incarnation,
        "since": run.since_ns / 1e9 if run and run.since_ns else None,
        "sample_age_s": instance.sample_age_s,
        "cpu_percent": host.cpu_percent if host else None,
        "rss_bytes": host.rss_bytes if host else None,
        "loop_delay_s": host.loop_delay_s if host else None,
        "loaded": [_fields(loaded) for loaded in beat.loaded] if beat else [],
        "lag": beat.lag if beat else {},
        "queued": beat.queued if beat else {},
    }


def _fields(struct: Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def active(standing: Mapping[str, Standing]) -> list[dict[str, Any]]:
    """The alerts that are raised."""
    return [
        {
            "id": alert,
            "rule": held.rule,
            "severity": RULES[held.rule].severity,
            "model": held.finding.model,
            "version": held.finding.version,
            "instance": held.finding.instance,
            "value": held.finding.value,
            "threshold": RULES[held.rule].raises_above,
            "message": held.finding.message,
            "since": held.raised_s,
        }
        for alert, held in standing.items()
        if held.rule in RULES
    ]


def alerts(state: State, history: Iterable[Happening]) -> dict[str, Any]:
    """What is wrong, what was, and what is looked for."""
    return {
        "active": active(state.alerts.active),
        "history": [_told(each) for each in history],
        "rules": [
            {
                "rule": rule.name,
                "severity": rule.severity,
                "raises_above": rule.raises_above,
                "clears_below": rule.clears_below,
                "for_s": rule.for_s,
                "text": rule.text,
            }
            for rule in RULES.values()
        ],
    }


def _told(each: Happening) -> dict[str, Any]:
    detail = orjson.loads(each.detail or "{}")
    return {
        "at": each.at_s,
        "change": detail.get("change"),
        "id": detail.get("alert"),
        "rule": detail.get("rule"),
        "severity": detail.get("severity"),
        "model": each.model,
        "version": each.version,
        "instance": each.instance,
        "value": detail.get("value"),
        "threshold": detail.get("threshold"),
        "message": each.text.partition(": ")[2],
    }


def jobs(state: State) -> dict[str, Any]:
    """The optimizer's jobs that reported within the hour, with their curves."""
    measured = state.measurements
    return {
        "jobs": [
            {
                "model": job.model,
                "version": job.version,
                "attempt": job.attempt,
                "instance": job.instance,
                "step": job.step,
                "fraction": job.fraction,
                "remaining_s": job.remaining_s,
                "at": job.at_ns / 1e9,
                "curves": measured.curves.get(key, {}),
            }
            for key, job in sorted(measured.jobs.items())
        ]
    }


def drift(state: State, model: str | None, how: Sensitivity) -> dict[str, Any]:
    """Every feature's distance from its reference."""
    return {
        "models": [
            {
                "model": watch.model,
                "version": watch.version,
                "state": "watching" if watch.windows or watch.window.rows else "collecting",
                "alarm": watch.alarm,
                "rows": watch.reference.rows + watch.window.rows,
                "reference_rows": watch.reference.rows,
                "windows_compared": watch.windows,
                "false_alarm_rate": how.alpha,
                "features": [
                    {
                        "feature": each.feature,
                        "kind": each.kind,
                        "statistic": each.statistic,
                        "threshold": how.least_distance,
                        "p_value": each.p_value,
                        "drifted": each.drifted,
                    }
                    for each in watch.compared
                ],
            }
            for watch in state.drift.watched.values()
            if model is None or watch.model == model
        ]
    }
