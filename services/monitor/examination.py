"""The analysis of a span, put together from the history and the settings; as JSON. Shape: docs/monitor.md."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from services.monitor import analysis, queries
from services.monitor.span import Span

if TYPE_CHECKING:
    from services.monitor.history import View
    from services.monitor.queries import Of
    from services.monitor.settings import MonitorSettings
    from services.monitor.tally import Tally


def examine(view: View, span: Span, settings: MonitorSettings, model: str | None = None) -> list[dict[str, Any]]:
    """Every version that had an outcome in the span."""
    tallies = queries.by_version(view, (span.start_s, span.end_s), model)
    tallies = {of: tally for of, tally in tallies.items() if of[0]}
    used = _Used(view, span, tallies)
    return [_version(view, span, settings, of, tally, used) for of, tally in tallies.items()]


class _Used:
    """What the workers used, and how many held which model; shared among versions by the time they ran."""

    def __init__(self, view: View, span: Span, tallies: dict[Of, Tally]) -> None:
        whole = Span(span.start_s, span.end_s, span.step_s)
        self._run_s = sum(tally.run_s for tally in tallies.values())
        self.cpu_core_s = sum(
            sample.mean / 100 * span.step_s
            for sample in queries.samples(view, whole, gauge="cpu_percent")
            if sample.service == "worker"
        )
        self.gpu_s = sum(span.step_s for _ in queries.samples(view, whole, gauge="gpu_utilisation_percent"))
        holders: dict[str, set[str]] = defaultdict(set)
        for sample in queries.samples(view, whole, gauge="loaded"):
            holders[sample.model].add(sample.instance)
        self.devices = {name: len(instances) for name, instances in holders.items()}

    def share(self, tally: Tally) -> float:
        """The part of it that is a version's."""
        return tally.run_s / self._run_s if self._run_s else 0.0


def _version(view: View, span: Span, settings: MonitorSettings, of: Of, tally: Tally, used: _Used) -> dict[str, Any]:
    name, version = of
    slo, devices, share = settings.slo(name), used.devices.get(name, 1), used.share(tally)
    met, slowest = analysis.levels(tally, slo), analysis.bottleneck(tally)
    windows = queries.by_window(view, span, name, version)
    busy = {at: each for at, each in windows.items() if each.requests}
    prices = (settings.monitor_cpu_core_hour_cost, settings.monitor_gpu_hour_cost)
    return {
        "model": name,
        "version": version,
        "requests": tally.requests,
        "per_s": tally.requests / span.seconds,
        "bottleneck": slowest and {"phase": slowest[0], "share": slowest[1]},
        "saturation": analysis.saturation(tally, len(busy) * span.step_s, devices),
        "devices": devices,
        "capacity_per_s": analysis.capacity(tally, devices, slo),
        "trend": {
            "p95_s_per_hour": analysis.trend_per_hour([(at, each.latency()["p95"]) for at, each in busy.items()]),
            "per_s_per_hour": analysis.trend_per_hour(
                [(at, each.requests / span.step_s) for at, each in windows.items()]
            ),
        },
        "cost_per_1000": analysis.cost_per_1000(tally, used.cpu_core_s * share, used.gpu_s * share, prices),
        "currency": settings.monitor_currency,
        "slo": {
            "latency_s": slo.latency_s,
            "latency_target": slo.latency_target,
            "latency_met": met.latency_met,
            "availability_target": slo.availability,
            "availability": met.availability,
            "error_budget": met.error_budget,
            "error_budget_spent": met.error_budget_spent,
            "burn_rate": met.error_budget_spent,
        },
    }
