"""What a report says, gathered from one view of the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from services.monitor import queries, series, timeline
from services.monitor.counting import PHASES
from services.monitor.examination import examine
from services.monitor.tally import QUANTILES, STATUSES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.monitor.history import View
    from services.monitor.queries import Happening, Of
    from services.monitor.settings import MonitorSettings
    from services.monitor.span import Span
    from services.monitor.tally import Tally

SECTIONS: Final = {
    "cpu": "CPU",
    "gpu": "GPU",
    "memory": "Memory",
    "disk": "Disk and network",
    "latency": "Latency",
    "throughput": "Throughput",
    "drift": "Drift",
}
_HOST: Final = (
    ("cpu", "cpu_percent", "percent", "process"),
    ("cpu", "host_cpu_percent", "percent", "host"),
    ("cpu", "loop_delay_s", "seconds", "event-loop delay"),
    ("memory", "rss_bytes", "bytes", "process"),
    ("memory", "host_memory_used_bytes", "bytes", "host, used"),
    ("memory", "host_memory_total_bytes", "bytes", "host, all"),
    ("disk", "disk_used_bytes", "bytes", "used"),
    ("disk", "disk_total_bytes", "bytes", "all"),
)
_RATES: Final = (
    ("disk_read_bytes", "read"),
    ("disk_written_bytes", "written"),
    ("network_received_bytes", "received"),
    ("network_sent_bytes", "sent"),
)
_GPU: Final = (
    ("utilisation_percent", "percent", "utilisation"),
    ("memory_used_bytes", "bytes", "memory used"),
    ("memory_total_bytes", "bytes", "memory, all"),
    ("power_w", "watts", "power"),
    ("temperature_c", "degrees Celsius", "temperature"),
)
Numbers = tuple[float | None, ...]


class Line(NamedTuple):
    """One series: a value for each window."""

    section: str
    subject: str
    """An instance, or a model with its version."""
    name: str
    unit: str
    values: Numbers


@dataclass(frozen=True)
class Version:
    """A version that had outcomes."""

    model: str
    version: int | None
    tally: Tally
    findings: dict[str, Any]
    """Of its analysis."""

    @property
    def name(self) -> str:
        """As people say it."""
        return self.model if self.version is None else f"{self.model} version {self.version}"


@dataclass(frozen=True)
class Report:
    """All of it."""

    span: Span
    made_s: float
    offsets: dict[int, int]
    """Of the outcome log, at which the counts hold."""
    model: str | None
    versions: tuple[Version, ...]
    refused: int
    lines: tuple[Line, ...]
    events: tuple[Happening, ...]
    currency: str

    def of(self, section: str) -> list[Line]:
        """The series of a section that have a value."""
        return [line for line in self.lines if line.section == section and any(v is not None for v in line.values)]

    @property
    def at(self) -> Sequence[int]:
        """The windows' beginnings."""
        return self.span.windows


def gather(
    view: View,
    span: Span,
    settings: MonitorSettings,
    model: str | None,
    now: tuple[float, list[Happening]],
) -> Report:
    """The report; `now` is the time, and the deploys of the span."""
    made_s, deploys = now
    tallies = queries.by_version(view, (span.start_s, span.end_s), model)
    findings = {(each["model"], each["version"]): each for each in examine(view, span, settings, model)}
    versions = tuple(Version(*of, tally, findings[of]) for of, tally in tallies.items() if of[0])
    lines = [*_hosts(view, span), *_models(view, span, list(tallies)), *_drift(view, span, model)]
    everywhere = queries.by_version(view, (span.start_s, span.end_s), "").get(("", None))
    events = [each for each in timeline.timeline(view, span, deploys) if model in (None, each.model) or not each.model]
    return Report(
        span,
        made_s,
        view.offsets,
        model,
        versions,
        everywhere.rejected if everywhere else 0,
        tuple(lines),
        tuple(events),
        settings.monitor_currency,
    )


def _hosts(view: View, span: Span) -> Iterator[Line]:
    for host in series.of_hosts(view, span, None)["hosts"]:
        subject = f"{host['instance']} ({host['service']})" if host["service"] else host["instance"]
        for section, gauge, unit, name in _HOST:
            # A process' memory would be a flat line beside its host's.
            of = f"{subject}, host" if section == "memory" and gauge.startswith("host") else subject
            yield Line(section, of, name, unit, tuple(host[gauge]["mean"]))
        for gauge, name in _RATES:
            yield Line("disk", subject, name, "bytes a second", tuple(host[f"{gauge}_per_s"]))
        for gpu in host["gpus"]:
            for gauge, unit, name in _GPU:
                yield Line("gpu", f"{subject}, GPU {gpu['index']}", name, unit, tuple(gpu[gauge]["mean"]))


def _models(view: View, span: Span, of: list[Of]) -> Iterator[Line]:
    for model, version in of:
        if not model:
            continue
        found = series.of_model(view, span, model, version)
        subject = model if version is None else f"{model} version {version}"
        for quantile in QUANTILES:
            yield Line("latency", subject, quantile, "seconds", tuple(found["latency_s"]["total"][quantile]))
        for phase in PHASES[:-1]:
            name = f"{phase.replace('_', ' ')}, mean"
            yield Line("latency", f"{subject}, by phase", name, "seconds", tuple(found["latency_s"][phase]["mean"]))
        for status in STATUSES:
            per_s = tuple(count / span.step_s for count in found["requests"][status])
            yield Line("throughput", subject, status, "requests a second", per_s)
        yield Line("throughput", f"{subject}, batches", "mean size", "requests", tuple(found["batch_size"]["mean"]))
        for gauge in ("lag", "queued"):
            yield Line("throughput", f"{model}, waiting", gauge, "records", tuple(found[gauge]))


def _drift(view: View, span: Span, model: str | None) -> Iterator[Line]:
    held: dict[tuple[str, str], dict[int, float]] = {}
    for sample in queries.samples(view, span, gauge="drift/", model=model):
        feature = sample.gauge.removeprefix("drift/")
        held.setdefault((f"{sample.model} {sample.instance}", feature), {})[sample.at] = sample.most
    for (subject, feature), values in sorted(held.items()):
        yield Line("drift", subject, feature, "distance", tuple(values.get(at) for at in span.windows))
