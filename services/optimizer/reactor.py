"""The reaction: watch the log, claim one version at a time, do it, and publish what became of it.

A claim is an event like any other: `RegistryLog.publish` reads it back, and the fold says whether it won. While a job
runs the log is watched on: an attempt that no longer counts is ended, child and all. Publishing can be repeated: what
the registry already holds is left out, what an earlier attempt said is ignored by the fold.

What is not the model's fault (Kafka or the store away, a full disk) is tried again with a growing wait, under the same
attempt; after `_TRIES` the version is put aside for `_PARKED_S` so that others get their turn.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from services.optimizer import claims
from services.optimizer.confined import SandboxUnusable
from services.optimizer.task import Hooks, Task
from shared import events as ev
from shared import logs, metric_events
from shared.errors import LogUnavailable, Unavailable

if TYPE_CHECKING:
    from services.optimizer.claims import Key, Listening, Work
    from services.optimizer.curves import Curves
    from services.optimizer.job import Jobs
    from services.optimizer.progress import Progressed
    from services.optimizer.settings import OptimizerSettings
    from shared.registry import Registry, Version
    from shared.registry_log import RegistryLog
    from shared.telemetry import Telemetry

_OUTCOMES = {ev.ModelRejected: "rejected", ev.FormatRecognised: "handed on", ev.ModelReady: "ready"}
_LOOK_AGAIN_S = 1.0
"""Deaths are not in the log: how long to wait for an event before looking at heartbeats again."""
_TRIES = 5
_FIRST_WAIT_S = 1.0
_MAX_WAIT_S = 30.0
_PARKED_S = 60.0


class Reactor:
    """One optimizer's work, one job at a time."""

    def __init__(
        self,
        settings: OptimizerSettings,
        log: RegistryLog,
        listening: Listening,
        jobs: Jobs,
        telemetry: Telemetry,
        curves: Curves | None = None,
    ) -> None:
        self._owner = settings.owner
        self._log = log
        self._listening = listening
        self._jobs = jobs
        self._telemetry = telemetry
        self._curves = curves
        self._parked_until_s: dict[Key, float] = {}

    async def run(self) -> None:
        """React until cancelled."""
        while True:
            registry = self._log.registry
            work = claims.next_work(registry, self._owner, self._listening.is_dead, self._parked(), self._jobs.can_do)
            if work is None:
                await self._news(registry)
                continue
            try:
                if version := await self._claimed(work):
                    await self._do(work, version)
            except LogUnavailable as err:
                logs.get().warning("waiting for kafka", what="claim", error=err.message)
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _parked(self) -> list[Key]:
        now_s = time.monotonic()
        self._parked_until_s = {key: until_s for key, until_s in self._parked_until_s.items() if until_s > now_s}
        return list(self._parked_until_s)

    async def _news(self, seen: Registry) -> None:
        """Return when the log has gone on, or it is time to look at the heartbeats again."""
        try:
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._log.reached(seen.offset + 1)
        except TimeoutError:
            return

    async def _claimed(self, work: Work) -> Version | None:
        """The version with our attempt on it, None if another claim came first."""
        registry = self._log.registry
        if not work.held:
            claim = ev.OptimizationClaimed(
                model=work.version.model, version=work.version.number, attempt=work.attempt, owner=self._owner
            )
            registry = await self._log.publish(claim)
        if not claims.is_held(registry, work, self._owner):
            return None
        return registry.version(work.version.model, work.version.number)

    async def _do(self, work: Work, version: Version) -> None:
        """Do the attempt while it counts."""
        async with asyncio.TaskGroup() as tasks:
            doing = tasks.create_task(self._persist(work, version), name="job")
            watching = tasks.create_task(self._superseded(work), name="job watch")
            await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                logs.get().warning("attempt superseded or cancelled", model=version.model, version=version.number)
            doing.cancel()
            watching.cancel()

    async def _superseded(self, work: Work) -> None:
        """Return when the attempt no longer counts."""
        while claims.is_held(self._log.registry, work, self._owner):
            await self._log.reached(self._log.registry.offset + 1)

    async def _persist(self, work: Work, version: Version) -> None:
        """Do the job and publish, again and again while that fails through no fault of the model."""
        began_s = time.monotonic()
        wait_s = _FIRST_WAIT_S
        hooks = Hooks(lambda progressed: self._progress(version, progressed), lambda step: self._publish(work, (step,)))
        for _ in range(_TRIES):
            try:
                registry = self._log.registry
                current = registry.version(version.model, version.number)
                events = await self._jobs.run(Task.of(registry, current), hooks)
                _canonical(version, events, time.monotonic() - began_s)
                await self._publish(work, events)
            except (Unavailable, OSError, SandboxUnusable) as err:
                logs.get().warning(
                    "job failed", model=version.model, version=version.number, error=str(err), retry_in_s=wait_s
                )
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _MAX_WAIT_S)
            else:
                return
        self._parked_until_s[(version.model, version.number)] = time.monotonic() + _PARKED_S

    async def _publish(self, work: Work, events: tuple[ev.AttemptEvent, ...]) -> None:
        """Append what the registry does not hold yet, until the attempt has ended or been superseded.

        Raises:
            LogUnavailable: Kafka did not take it. Some of it may be in the log.
        """
        for event in events:
            if not claims.is_held(self._log.registry, work, self._owner):
                return
            if not _is_known(self._log.registry.version(event.model, event.version), event):
                await self._log.publish(event)

    async def _progress(self, version: Version, progressed: Progressed) -> None:
        event = self._telemetry.event(
            metric_events.JobProgressed,
            model=version.model,
            version=version.number,
            attempt=version.attempt,
            step=progressed.step,
            fraction=progressed.fraction,
            remaining_s=progressed.remaining_s,
            points=dict(progressed.points),
        )
        await self._telemetry.publish([event])
        if self._curves is not None:
            self._curves.add(version, progressed.points)


def _is_known(version: Version, event: ev.AttemptEvent) -> bool:
    """Whether an earlier try of this attempt already said so."""
    match event:
        case ev.StepFinished(step=step):
            return step in version.steps
        case ev.FormatRecognised(format=name, handed_on=False):
            return name == version.recognised
        case ev.VariantReady(variant=variant, artifact=artifact):
            held = version.variants.get(variant)
            return held is not None and held.artifact.sha256 == artifact.sha256
        case ev.VariantRejected(variant=variant):
            return any(rejection.variant == variant for rejection in version.rejections)
        case _:
            return False


def _canonical(version: Version, events: tuple[ev.AttemptEvent, ...], duration_s: float) -> None:
    """The one line that says what became of a job."""
    last = events[-1]
    logs.get().info(
        "job",
        model=version.model,
        version=version.number,
        attempt=version.attempt,
        sha256=version.artifact.sha256,
        byte_size=version.artifact.byte_size,
        outcome=_OUTCOMES[type(last)],
        code=getattr(last, "code", None),
        variant=getattr(last, "variant", None),
        reason=getattr(last, "reason", None),
        duration_s=round(duration_s, 3),
    )
