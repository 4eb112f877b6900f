"""What the monitor knows, in one place, for those who fill it (`app`) and those who show it (`exposition`, `views`)."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.monitor.alerts import Alerts
from services.monitor.deploys import Deploys
from services.monitor.drift import Drift
from services.monitor.fold import OutcomeFold
from services.monitor.measurements import Measurements
from services.monitor.recorder import Recorder
from shared.errors import Unfinished
from shared.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.monitor.history import History, View
    from services.monitor.measurements import Run
    from shared.heartbeat_events import Heartbeat
    from shared.registry_log import RegistryLog

UP_INTERVALS = 3
"""An instance that sends samples only counts as up until so many intervals, and a second, have passed without one."""


@dataclass
class State:
    """The two folds, the heartbeats of the living, and what the monitor waits for before it is ready."""

    metrics_interval_s: float
    outcomes: OutcomeFold = field(default_factory=OutcomeFold)
    measurements: Measurements = field(default_factory=Measurements)
    alerts: Alerts = field(default_factory=Alerts)
    drift: Drift = field(default_factory=Drift)
    deploys: Deploys = field(default_factory=Deploys)
    registry: Callable[[], Registry] = Registry
    """As the `models` log has it."""
    recorder: Recorder = field(default_factory=Recorder)
    """What is not stored yet."""
    history: History | None = None
    """Not there before the monitor knows which log it follows."""
    alive: Callable[[], list[Heartbeat]] = list
    lag: Callable[[], int] = int
    """Outcomes in the log and not yet folded."""
    registry_log: RegistryLog | None = None
    """The `models` log, once it is followed."""
    waiting_for: Callable[[], str | None] = lambda: "kafka"

    @contextlib.contextmanager
    def view(self) -> Iterator[View]:
        """The history as it is now, with what is not stored yet.

        Raises:
            Unfinished: there is none yet.
        """
        if self.history is None:
            raise Unfinished(f"The monitor waits for {self.waiting_for()}.")
        new = self.recorder.take()
        self.recorder.back(new)
        with self.history.view(new, dict(self.outcomes.offsets)) as view:
            yield view

    def instances(self, now_ns: int | None = None) -> list[Instance]:
        """Every instance heard of within the hour, by name."""
        now_ns = time.time_ns() if now_ns is None else now_ns
        runs = {run.instance: run for run in self.measurements.latest(now_ns)}
        beats = {beat.instance: beat for beat in self.alive()}
        within_ns = int((UP_INTERVALS * self.metrics_interval_s + 1) * 1e9)
        return [
            Instance(
                name, name in beats or now_ns - runs[name].at_ns < within_ns, runs.get(name), beats.get(name), now_ns
            )
            for name in sorted(runs.keys() | beats.keys())
        ]


@dataclass(frozen=True)
class Instance:
    """One instance as of `now_ns`: its last samples, if it sent any, and its heartbeat, if that is fresh."""

    name: str
    up: bool
    run: Run | None
    beat: Heartbeat | None
    now_ns: int

    @property
    def service(self) -> str:
        """What it is."""
        return self.beat.service if self.beat else self.run.service if self.run else ""

    @property
    def incarnation(self) -> str:
        """Which run of it."""
        return self.beat.incarnation if self.beat else self.run.incarnation if self.run else ""

    @property
    def sample_age_s(self) -> float | None:
        """How old its last measurement is."""
        return max(self.now_ns - self.run.at_ns, 0) / 1e9 if self.run else None
