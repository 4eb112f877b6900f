"""One model's queue in this worker: which version answers, which jobs are due, which run together.

Routing uses the newest registry whose routed variants are in memory (`adopt`): a new version is loaded and warmed
beside the running one, and only then do requests see it. Which version answers is a pure function of that registry
and the request id, and the receipt names the registry's offset.

A job arrives, is prepared if it needs to be (`preparation`), waits (`waiting`) and is taken into a batch. One whose
variant isn't in memory asks the shelf for it and stays; one that can't be served is handed to `settle`, and so is one
whose deadline has passed, even while the lane is busy (`expire`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from services.worker.batching import rows_alone, shape_key
from services.worker.job import Plan
from services.worker.preparation import Preparation
from services.worker.waiting import Waiting
from shared.errors import AiaasError, DeadlineExceeded, ModelNotReady
from shared.processed_signature import validate

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from services.worker.engine import Engine
    from services.worker.job import Job
    from services.worker.ledger import Ledger
    from services.worker.preparation import Step
    from services.worker.processing.processor import Processor
    from services.worker.shelf import Shelf
    from shared.registry import Registry, Variant

_MAX_PLANS: Final = 1024
_GOOD_PART: Final = 4
"""A quarter of what may run together is worth running: beyond that, larger batches hardly cost less a row."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that run together, in order, on one engine."""

    jobs: tuple[Job, ...]
    variant: Variant
    engine: Engine
    processor: Processor | None = None
    """The steps behind the model."""


class ModelServer:
    """The queue of one model. `settle` takes jobs that will not run, with their `error` set; `wake` says: look here."""

    def __init__(
        self,
        name: str,
        registry: Registry,
        shelf: Shelf,
        settle: Callable[[list[Job]], None],
        max_batch_bytes: int,
        steps: Sequence[Step] = (),
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.registry = registry
        """What requests without a version are routed by: its variants are, or were, in memory."""
        self.latest = registry
        """The newest registry known."""
        self.waiting = Waiting()
        self.earliest_ms: int | None = None
        """No job that waits has its deadline before this, a Unix time in ms."""
        self._preparation = Preparation(steps, self._prepared)
        self._shelf = shelf
        self._settle = settle
        self._wake = wake
        self._max_batch_bytes = max_batch_bytes
        self._plans: dict[Hashable, Plan] = {}
        """Of requests that need no preparation, by version and form: most have few forms."""

    # ------------------------------------------------------------------ which version answers

    def adopt(self, registry: Registry) -> None:
        """Route by `registry` if what it routes to is in memory; else ask the shelf for it, and keep the old one."""
        self.latest = registry
        self._plans.clear()
        before, after = self.routed(), self._routed(registry)
        missing = [variant for variant in after if variant not in before and not self._shelf.has(variant)]
        changed = [variant for variant in self._reconfigured(registry) if not self._shelf.has(variant)]
        awaited = [variant for variant in changed if self._shelf.failure(variant) is None]
        for variant in (*missing, *awaited):
            if self._shelf.failure(variant) is None:
                self._shelf.want(variant)
        if not (missing and before) and not awaited:
            self.registry = registry

    def routed(self) -> list[Variant]:
        """The variants that requests without a version are routed to."""
        return self._routed(self.registry)

    def known(self) -> list[Variant]:
        """The variants that requests may meet: those of the newest registry, and of the one that is routed by."""
        models = [registry.models.get(self.name) for registry in (self.registry, self.latest)]
        versions = [version for model in models if model is not None for version in model.versions.values()]
        return [variant for version in versions for variant in version.variants.values()]

    def _running(self) -> dict[int, Variant]:
        """What answers now and is in memory, by version."""
        model = self.registry.models.get(self.name)
        ready = [] if model is None else [v for v in model.versions.values() if v.state == "ready"]
        running = {version.number: version.serving for version in ready if self._shelf.has(version.serving)}
        return running | {version.number: version.serving for version in ready if version.serving in self.routed()}

    def _reconfigured(self, registry: Registry) -> list[Variant]:
        """The variants of `registry` that run now, but with other options."""
        model = registry.models.get(self.name)
        if model is None or model.unloaded:
            return []
        running = self._running()
        ready = [v for v in model.versions.values() if v.state == "ready" and v.number in running]
        return [v.serving for v in ready if v.serving.key != running[v.number].key]

    def _registry_for(self, number: int | None) -> Registry:
        """Who asked for a version gets it by the newest registry, unless only its options differ and are not there."""
        if number is None:
            return self.registry
        known = (self.latest.models.get(self.name), self.registry.models.get(self.name))
        newest, present = (None if model is None else model.versions.get(number) for model in known)
        if newest is None or present is None or {newest.state, present.state} != {"ready"}:
            return self.latest
        same = newest.serving.key[:2] == present.serving.key[:2]
        replaced = same and not self._shelf.has(newest.serving) and self._shelf.has(present.serving)
        return self.registry if replaced else self.latest

    def _routed(self, registry: Registry) -> list[Variant]:
        model = registry.models.get(self.name)
        if model is None or model.retired or model.unloaded:
            return []
        numbers = [n for n, weight in model.weights.items() if weight] or [n for n in (model.active,) if n]
        return [model.versions[n].serving for n in numbers if model.versions[n].state == "ready"]

    # ------------------------------------------------------------------ jobs in

    def arrive(self, jobs: Iterable[Job]) -> None:
        """Take in jobs: to their queue, to be prepared for it, or to be settled."""
        unserved = [job for job in jobs if not self._admitted(job)]
        if unserved:
            self._settle(unserved)

    def _admitted(self, job: Job) -> bool:
        if job.error is None:
            self._plan(job)
        if job.error is not None:
            return False
        if job.plan is not None and job.plan.unprepared:
            self._preparation.start(job)
        else:
            self._enqueue(job)
        return True

    def _enqueue(self, job: Job) -> None:
        self.waiting.add(job)
        deadline_ms = job.headers.deadline_ms
        if deadline_ms is not None and (self.earliest_ms is None or deadline_ms < self.earliest_ms):
            self.earliest_ms = deadline_ms

    def _prepared(self, job: Job) -> None:
        if job.error is None:  # else its outcome names the version that it was prepared for
            job.plan = None
        self.arrive([job])
        self._wake()

    def drop(self, ledger: Ledger) -> list[Job]:
        """Take back the jobs of a ledger that have not been started."""
        return self._preparation.drop(ledger) + self.waiting.remove_if(lambda job: job.ledger is ledger)

    def expire(self, now_ms: int) -> None:
        """Settle the jobs whose deadline has passed at a Unix time in ms."""
        if self.earliest_ms is None or now_ms <= self.earliest_ms:
            return
        overdue = self.waiting.remove_if(lambda job: job.is_overdue(now_ms))
        deadlines = (job.headers.deadline_ms for job in self.waiting)
        self.earliest_ms = min((ms for ms in deadlines if ms is not None), default=None)
        for job in overdue:
            job.error = _late()
        if overdue:
            self._settle(overdue)

    # ------------------------------------------------------------------ batches out

    def next_batch(self) -> Batch | None:
        """Take the jobs that should run next, None if none can. Jobs that can't be served go to `settle`."""
        now_ms = time.time_ns() // 1_000_000
        batch: list[Job] = []
        unserved: list[Job] = []
        used = _Used(self._max_batch_bytes)
        for queue in self.waiting.in_turn():
            later: list[Job] = []
            while queue and not used.full:
                job = queue.popleft()
                plan = self._plan_due(job, now_ms)
                if job.error is not None:
                    unserved.append(job)
                elif plan is not None and plan.unprepared:
                    self._preparation.start(job)
                elif plan is None or not self._shelf.has(plan.variant) or not used.admits(job, plan):
                    later.append(job)
                else:
                    used.add(job, plan)
                    batch.append(job)
            queue.extendleft(reversed(later))
        if unserved:
            self._settle(unserved)
        if used.plan is None:
            return None
        self.waiting.taken(high=batch[0].high)
        variant = used.plan.variant
        processor = None if variant.processing is None else self._shelf.processor(variant)
        return Batch(tuple(batch), variant, self._shelf.take(variant), processor)

    @property
    def has_good_batch(self) -> bool:
        """Whether a good part of a batch waits, and nothing among what waits that has killed a worker."""
        cap = min((variant.row_cap for variant in self.routed()), default=1)
        enough = cap > 1 and len(self.waiting) >= max(2, cap // _GOOD_PART)
        return enough and not any(job.deaths for job in self.waiting)

    def _plan_due(self, job: Job, now_ms: int) -> Plan | None:
        if job.is_overdue(now_ms):
            job.error = _late()
            return None
        return self._plan(job)

    def _plan(self, job: Job) -> Plan | None:
        """The job's plan under the present registry; None if it has to wait. Sets `job.error` if it can't be served."""
        registry = self._registry_for(job.headers.model_version)
        if job.plan is None or job.plan.registry_offset != registry.offset:
            try:
                job.plan = self._route(job, registry)
            except ModelNotReady as err:
                # The log is a queue: who asked for the model waits for it; who asked for a version is told.
                job.plan = None
                job.error = err if job.headers.model_version is not None else None
            except AiaasError as err:
                job.error = err
        plan = job.plan
        if plan is not None and job.error is None and not self._shelf.has(plan.variant):
            job.error = self._shelf.failure(plan.variant)
            if job.error is None:
                self._shelf.want(plan.variant)
        return plan

    def _route(self, job: Job, registry: Registry) -> Plan:
        request = job.request
        if request is None:
            raise AssertionError("a job without a request has an error and is never queued")
        version = registry.route(self.name, job.request_id, job.headers.model_version)
        variant = version.serving
        bare = job.plan = Plan(registry.offset, version, variant, (), None)  # what does not fit still names its version
        if self._preparation.wanted(job):
            return replace(bare, unprepared=True)
        form = (
            registry.offset,
            version.number,
            tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs]),
            tuple([(output.name, *output.parameters) for output in request.outputs]),
        )
        plan = self._plans.get(form)
        if plan is None:
            validate(request, variant.signature, variant.processing)
            plan = replace(bare, key=shape_key(request, variant.signature), rows=rows_alone(request, variant))
            if all(spec.batch_axis is not None for spec in variant.signature.inputs):  # else the key holds data
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.clear()
                self._plans[form] = plan
        return replace(plan, rows=None) if job.deaths else plan


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the request ran")


class _Used:
    """What a batch under construction has used up of its bounds."""

    def __init__(self, max_bytes: int) -> None:
        self.plan: Plan | None = None
        self.full = False
        self._rows = 0
        self._bytes = 0
        self._max_bytes = max_bytes
        self._ids: set[str] = set()

    def admits(self, job: Job, plan: Plan) -> bool:
        first = self.plan
        if first is None:
            return True
        return (
            plan.rows is not None
            and first.version is plan.version
            and first.key == plan.key
            and self._rows + plan.rows <= plan.variant.row_cap
            and self._bytes + job.size_bytes <= self._max_bytes
            and job.request_id not in self._ids  # the second of an id waits, to find out what the first is
        )

    def add(self, job: Job, plan: Plan) -> None:
        self.plan = self.plan or plan
        self._ids.add(job.request_id)
        self._rows += plan.rows or 0
        self._bytes += job.size_bytes
        self.full = plan.rows is None or self._rows >= plan.variant.row_cap
