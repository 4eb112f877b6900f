"""Receipts: what a request's outcome says. Built once, stored with the answer, appended to the outcome log.

Field by field as `shared.outcome_events.Receipt` has it; this module knows which are filled in which case.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import TYPE_CHECKING

from msgspec.structs import replace

from services.worker.batching import independent_rows
from shared.codec import decode_event, rfc3339
from shared.outcome_events import BatchMembership, Coordinates, Receipt, Timings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.worker.job import Job
    from shared.outcome_events import Runtime, Status
    from shared.replies import Claim
    from shared.results import Result


def memberships(jobs: Sequence[Job]) -> list[BatchMembership]:
    """The place of each job in the batch that they are together."""
    rows = [_rows(job) for job in jobs]
    told = [count for count in rows if count is not None]
    total = sum(told) if len(told) == len(rows) else None
    batch_id, members = uuid.uuid4().hex, _members_sha256(jobs)
    return [
        BatchMembership(
            id=batch_id,
            index=index,
            size=len(jobs),
            padding=0,
            members_sha256=members,
            rows=count,
            total_rows=total,
        )
        for index, count in enumerate(rows)
    ]


def _rows(job: Job) -> int | None:
    """Rows of a job that runs; one that runs alone has them too, though its plan does not."""
    plan, request = job.plan, job.request
    if plan is None or request is None:
        return None
    return independent_rows(request, plan.variant) if plan.rows is None else plan.rows


def _members_sha256(jobs: Sequence[Job]) -> str:
    """The digest of a batch's membership and order."""
    lines = [f"{(at := job.record).topic}-{at.partition}-{at.offset} {job.input_sha256}\n" for job in jobs]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def queue_ns(job: Job) -> int:
    """Nanoseconds since the broker (or producer) stamped the record; clocks may disagree, time does not run back.

    A stamp before 1970 is none: Kafka writes -1 where a producer gave no time, and takes any other from it.
    """
    stamped_ms: int = job.record.timestamp
    return 0 if stamped_ms < 0 else max(0, time.time_ns() - stamped_ms * 1_000_000 - job.preparation_ns)


class Receipts:
    """Makes the receipts of one worker."""

    def __init__(self, worker: str, cluster_id: str | None) -> None:
        self._worker = worker
        self._cluster_id = cluster_id

    def coordinates(self, topic: str, partition: int, offset: int) -> Coordinates:
        """Where a record of our cluster lies."""
        return Coordinates(cluster_id=self._cluster_id, topic=topic, partition=partition, offset=offset)

    def succeeded(
        self,
        job: Job,
        output_sha256: str | None,
        runtime: Runtime,
        batch: BatchMembership,
        timings: Timings,
        completed_at: str,
    ) -> Receipt:
        """The model answered; the digest of large outputs is not known yet, and filled in by `claims`."""
        return self._receipt(job, "succeeded", None, timings, runtime, batch, output_sha256, completed_at)

    def failed_in_run(self, job: Job, code: str, runtime: Runtime, batch: BatchMembership, timings: Timings) -> Receipt:
        """The run raised, or took too long."""
        return self._receipt(job, "failed", code, timings, runtime, batch)

    def not_run(self, job: Job, status: Status, code: str | None) -> Receipt:
        """Nothing ran: the request failed before, expired or was cancelled."""
        return self._receipt(job, status, code, Timings(queue=queue_ns(job)))

    def _receipt(
        self,
        job: Job,
        status: Status,
        code: str | None,
        timings: Timings,
        runtime: Runtime | None = None,
        batch: BatchMembership | None = None,
        output_sha256: str | None = None,
        completed_at: str | None = None,
    ) -> Receipt:
        record, plan = job.record, job.plan
        return Receipt(
            request_id=job.request_id,
            tenant=job.headers.tenant,
            model_name=job.model,
            model_version=plan.version.number if plan else None,
            variant=plan.variant.name if plan else None,
            artifact_sha256=plan.variant.artifact.sha256 if plan else None,
            registry_offset=plan.registry_offset if plan else -1,
            status=status,
            error_code=code,
            request=self.coordinates(record.topic, record.partition, record.offset),
            input_sha256=job.input_sha256,
            output_sha256=output_sha256,
            runtime=runtime,
            batch=batch,
            timings_ns=timings,
            worker=self._worker,
            reexecuted=runtime is not None and job.deaths > 0,
            completed_at=completed_at or rfc3339(time.time_ns()),
            processing_sha256=plan.variant.processing_sha256 if plan else None,
        )

    def duplicate(self, job: Job, first: Claim | Coordinates, result: Result) -> Receipt:
        """Another record already asked the same under this id: its status and digest, not run again."""
        output_sha256 = None if result.receipt is None else decode_event(Receipt, result.receipt).output_sha256
        code = result.error["code"] if result.error else None
        return replace(
            self.not_run(job, result.status, code),
            duplicate_of=self.coordinates(first.topic, first.partition, first.offset),
            model_version=result.model_version,
            output_sha256=output_sha256,
        )
