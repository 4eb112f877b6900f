"""One model's queue in this worker: which version answers, which jobs are due, which run together.

Routing uses the newest registry whose routed variants are in memory (`adopt`): a new version is loaded and warmed
beside the running one, and only then do requests see it. Which version answers is a pure function of that registry
and the request id, and the receipt names the registry's offset.

A job whose variant isn't in memory asks the shelf for it and stays; one that can't be served is handed to `settle`,
and so is one whose deadline has passed.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.worker.batching import rows_alone, shape_key
from services.worker.job import Plan
from shared.errors import AiaasError, DeadlineExceeded, ModelNotReady
from shared.signature import validate_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.worker.engine import OnnxEngine
    from services.worker.job import Job
    from services.worker.ledger import Ledger
    from services.worker.shelf import Shelf
    from shared.registry import Registry, Variant


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that run together, in order, on one engine."""

    jobs: tuple[Job, ...]
    variant: Variant
    engine: OnnxEngine


class ModelServer:
    """The queue of one model. `settle` takes jobs that will not run, with their `error` set."""

    def __init__(
        self, name: str, registry: Registry, shelf: Shelf, settle: Callable[[list[Job]], None], max_batch_bytes: int
    ) -> None:
        self.name = name
        self.registry = registry
        """What requests without a version are routed by: its variants are, or were, in memory."""
        self.latest = registry
        """The newest registry known."""
        self.pending: deque[Job] = deque()
        self._shelf = shelf
        self._settle = settle
        self._max_batch_bytes = max_batch_bytes

    def adopt(self, registry: Registry) -> None:
        """Route by `registry` if what it routes to is in memory; else ask the shelf for it, and keep the old one."""
        self.latest = registry
        before, after = self.routed(), self._routed(registry)
        missing = [variant for variant in after if variant not in before and not self._shelf.has(variant)]
        for variant in missing:
            if self._shelf.failure(variant) is None:
                self._shelf.want(variant)
        if not missing or not before:
            self.registry = registry

    def routed(self) -> list[Variant]:
        """The variants that requests without a version are routed to."""
        return self._routed(self.registry)

    def _routed(self, registry: Registry) -> list[Variant]:
        model = registry.models.get(self.name)
        if model is None or model.retired:
            return []
        numbers = [n for n, weight in model.weights.items() if weight] or [n for n in (model.active,) if n]
        return [model.versions[n].serving for n in numbers if model.versions[n].state == "ready"]

    def drop(self, ledger: Ledger) -> list[Job]:
        """Take back the jobs of a ledger that have not been started."""
        dropped = [job for job in self.pending if job.ledger is ledger]
        self.pending = deque(job for job in self.pending if job.ledger is not ledger)
        return dropped

    def next_batch(self) -> Batch | None:
        """Take the jobs that should run next, None if none can. Jobs that can't be served go to `settle`."""
        now_ms = time.time_ns() // 1_000_000
        batch: list[Job] = []
        later: list[Job] = []
        unserved: list[Job] = []
        used = _Used(self._max_batch_bytes)
        while self.pending and not used.full:
            job = self.pending.popleft()
            plan = self._plan(job, now_ms)
            if job.error is not None:
                unserved.append(job)
            elif plan is None or not self._shelf.has(plan.variant) or not used.admits(job, plan):
                later.append(job)
            else:
                used.add(job, plan)
                batch.append(job)
        self.pending.extendleft(reversed(later))
        if unserved:
            self._settle(unserved)
        if used.plan is None:
            return None
        return Batch(tuple(batch), used.plan.variant, self._shelf.take(used.plan.variant))

    def _plan(self, job: Job, now_ms: int) -> Plan | None:
        """The job's plan under the present registry; None if it has to wait. Sets `job.error` if it can't be served."""
        if job.is_overdue(now_ms):
            job.error = DeadlineExceeded("the deadline passed before the request ran")
            return None
        registry = self.registry if job.headers.model_version is None else self.latest
        if job.plan is None or job.plan.registry_offset != registry.offset:
            try:
                job.plan = self._route(job, registry)
            except ModelNotReady as err:
                # The log is a queue: who asked for the model waits for it; who asked for a version is told.
                job.plan = None
                job.error = err if job.headers.model_version is not None else None
            except AiaasError as err:
                job.error = err
        if job.plan is not None and (failure := self._shelf.failure(job.plan.variant)) is not None:
            job.error = failure
        elif job.plan is not None and not self._shelf.has(job.plan.variant):
            self._shelf.want(job.plan.variant)
        return job.plan

    def _route(self, job: Job, registry: Registry) -> Plan:
        request = job.request
        if request is None:
            raise AssertionError("a job without a request has an error and is never queued")
        version = registry.route(self.name, job.request_id, job.headers.model_version)
        variant = version.serving
        plan = Plan(registry.offset, version, variant, (), None)
        job.plan = plan  # a request that does not fit still names the version it was held against
        validate_inputs(request, variant.signature)
        rows = None if job.deaths else rows_alone(request, variant)
        return Plan(plan.registry_offset, version, variant, shape_key(request, variant.signature), rows)


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
            and self._rows + plan.rows <= plan.variant.batch_cap
            and self._bytes + job.size_bytes <= self._max_bytes
            and job.request_id not in self._ids  # the second of an id waits, to find out what the first is
        )

    def add(self, job: Job, plan: Plan) -> None:
        self.plan = self.plan or plan
        self._ids.add(job.request_id)
        self._rows += plan.rows or 0
        self._bytes += job.size_bytes
        self.full = plan.rows is None or self._rows >= plan.variant.batch_cap
