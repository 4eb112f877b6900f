"""What instances say of themselves (`metrics`): the latest sample of each, and the sums of what they counted.

A fold like `services.monitor.fold`, but of events that may be lost on the way (see `shared.telemetry`), so that its
sums are what arrived. A run of an instance numbers its events; one whose number is not above the last is a repeat.
Time is that of the events, never of their arrival; `now_ns` only says what to forget: a run or a job that has said
nothing for an hour. Sums stay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from services.monitor.totals import bounded_size
from shared.metric_events import BatchesRan, HostSampled, HttpAnswered, JobProgressed, MetricEvent

FORGET_NS = 3600 * 10**9
MAX_RUNS = 1000
"""Runs of instances, variants and jobs held at a time, each; what comes beyond is ignored."""
MAX_CURVES = 20
MAX_POINTS = 500
"""Of each curve of a job."""

Ignored = Literal["repeat", "too_many"]


@dataclass(slots=True)
class Run:
    """One run of an instance, from its start to its end."""

    instance: str
    incarnation: str
    service: str
    seq: int = 0
    at_ns: int = 0
    since_ns: int = 0
    """Its first event."""
    host: HostSampled | None = None
    http_in_flight: int | None = None
    lost: bool = False
    """That it is not heard of any more has been noted."""


@dataclass(slots=True)
class VariantRuns:
    """Executions of a variant by all workers, as they counted them."""

    model: str
    version: int
    variant: str
    executions: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    compute_infer_ns: int = 0


@dataclass(slots=True)
class Measurements:
    """All that the monitor knows from `metrics`."""

    runs: dict[str, Run] = field(default_factory=dict)
    """By `instance/incarnation`."""
    variants: dict[str, VariantRuns] = field(default_factory=dict)
    """By `model/version/variant`."""
    http_statuses: Counter[str] = field(default_factory=Counter)
    jobs: dict[str, JobProgressed] = field(default_factory=dict)
    """The latest of each, by `model/version`."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = field(default_factory=dict)
    """The newest points of the curves of each job."""
    ignored: Counter[Ignored] = field(default_factory=Counter)

    def add(self, event: MetricEvent, now_ns: int) -> bool:
        """Take in one event; whether it is no repeat and there is room for it."""
        self.forget(now_ns)
        owner = f"{event.instance}/{event.incarnation}"
        run = self.runs.get(owner)
        if run is None:
            if len(self.runs) >= MAX_RUNS:
                self.ignored["too_many"] += 1
                return False
            run = self.runs[owner] = Run(event.instance, event.incarnation, event.service)
        if event.seq <= run.seq:
            self.ignored["repeat"] += 1
            return False
        run.since_ns = run.since_ns or min(event.at_ns, now_ns)
        run.seq, run.at_ns, run.lost = event.seq, min(event.at_ns, now_ns), False
        self._count(run, event)
        return True

    def last_run(self, instance: str) -> Run | None:
        """The last run of an instance."""
        return max((run for run in self.runs.values() if run.instance == instance), key=_at, default=None)

    def _count(self, run: Run, event: MetricEvent) -> None:
        match event:
            case HostSampled():
                run.host = event
            case HttpAnswered():
                run.http_in_flight = event.in_flight
                for status, count in event.statuses.items():
                    self.http_statuses[str(status) if 100 <= status <= 599 else "other"] += max(count, 0)  # noqa: PLR2004 - HTTP's range
            case JobProgressed():
                key = f"{event.model}/{event.version}"
                if key in self.jobs or len(self.jobs) < MAX_RUNS:
                    self._progressed(key, event)
            case BatchesRan():
                self._ran(event)
            case _:
                pass  # a newer writer's measurement, which this monitor has no use for

    def _progressed(self, key: str, event: JobProgressed) -> None:
        before = self.jobs.get(key)
        if before is None or before.attempt != event.attempt:
            self.curves[key] = {}
        self.jobs[key], curves = event, self.curves[key]
        for name, point in event.points.items():
            if name in curves or len(curves) < MAX_CURVES:
                points = curves.setdefault(name, [])
                if not points or points[-1][0] < point[0]:
                    points.append(point)
                del points[:-MAX_POINTS]

    def _ran(self, event: BatchesRan) -> None:
        key = f"{event.model}/{event.version}/{event.variant}"
        runs = self.variants.get(key)
        if runs is None:
            if len(self.variants) >= MAX_RUNS:
                self.ignored["too_many"] += 1
                return
            runs = self.variants[key] = VariantRuns(event.model, event.version, event.variant)
        runs.executions += max(event.executions, 0)
        runs.compute_infer_ns += max(event.compute_infer_ns, 0)
        for size, count in event.sizes.items():
            runs.sizes[bounded_size(size)] += max(count, 0)

    def forget(self, now_ns: int) -> None:
        """Drop runs and jobs that have said nothing for an hour."""
        for owner in [owner for owner, run in self.runs.items() if now_ns - run.at_ns > FORGET_NS]:
            del self.runs[owner]
        for job in [job for job, event in self.jobs.items() if now_ns - event.at_ns > FORGET_NS]:
            del self.jobs[job]
            self.curves.pop(job, None)

    def latest(self, now_ns: int) -> list[Run]:
        """The last run of every instance heard of within the hour, by name."""
        self.forget(now_ns)
        last: dict[str, Run] = {}
        for run in self.runs.values():
            if run.instance not in last or last[run.instance].at_ns <= run.at_ns:
                last[run.instance] = run
        return [last[name] for name in sorted(last)]


def _at(run: Run) -> int:
    return run.at_ns
