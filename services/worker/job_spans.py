"""Spans of a request at the worker, told when it is over: what its receipt says of where the time went.

    process            consumer    from the broker's stamp of the record until its answer is in Redis
      queue            internal    waiting in the log and in the worker
      compute_input    internal    decoding, tokenizing, putting the batch together
      compute_infer    internal    the model's run, shared with the batch's other members (`aiaas.batch.id`)
      compute_output   internal    taking the batch apart, the steps behind the model
      settle           client      offering the answer to Redis, and whose answer it was

The parent is the record's `traceparent`, so a trace begins wherever the caller, the gateway or an upstream producer
began it; a record without one begins its own. Durations are the receipt's; where they lie is counted from its
`completed_at` backwards, so clocks of different hosts can move the whole, and never one step against another.
"""

from __future__ import annotations

import time
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.worker.job import Job
    from shared.outcome_events import Receipt
    from shared.results import Result
    from shared.tracing import Tracing

_PHASES: Final = ("queue", "compute_input", "compute_infer", "compute_output")


class JobSpans:
    """Tells the spans of one worker's requests."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def settled(self, outcomes: Sequence[tuple[Job, Receipt, Result]]) -> None:
        """These jobs have their outcomes."""
        now_ns = time.time_ns()
        for job, receipt, _ in outcomes:
            self._tell(job, receipt, now_ns)

    def _tell(self, job: Job, receipt: Receipt, now_ns: int) -> None:
        timings = receipt.timings_ns
        durations = [(phase, max(ns, 0)) for phase in _PHASES if (ns := getattr(timings, phase)) is not None]
        computed_ns = min(_unix_ns(receipt.completed_at) or now_ns, now_ns)
        began_ns = computed_ns - sum(ns for _, ns in durations)
        span = self._tracing.begin(
            f"process {job.record.topic}", "consumer", job.headers.traceparent, _about(job, receipt), began_ns
        )
        if not span.sampled:
            return
        ends_ns = accumulate((ns for _, ns in durations), initial=began_ns)
        for (phase, ns), at_ns in zip(durations, ends_ns, strict=False):
            span.child(phase, at_ns, at_ns + ns, _of_the_run(receipt) if phase == "compute_infer" else None)
        span.child("settle", computed_ns, now_ns, {"db.system.name": "redis"}, "client")
        span.end(now_ns, error=receipt.error_code)


def _about(job: Job, receipt: Receipt) -> dict[str, Any]:
    record = job.record
    return {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.destination.name": record.topic,
        "messaging.destination.partition.id": str(record.partition),
        "messaging.kafka.offset": record.offset,
        "messaging.message.id": job.request_id,
        "aiaas.model.name": job.model,
        "aiaas.model.version": receipt.model_version,
        "aiaas.status": receipt.status,
        "aiaas.reexecuted": receipt.reexecuted,
    }


def _of_the_run(receipt: Receipt) -> dict[str, Any]:
    batch = receipt.batch
    return {
        "aiaas.variant": receipt.variant,
        "aiaas.batch.id": batch and batch.id,
        "aiaas.batch.size": batch and batch.size,
        "aiaas.batch.index": batch and batch.index,
    }


def _unix_ns(rfc3339: str) -> int | None:
    """Nanoseconds since the epoch, to the microsecond; None if it is no time (a receipt may be anyone's)."""
    try:
        return int(datetime.fromisoformat(rfc3339).timestamp() * 1_000_000) * 1000
    except (ValueError, OverflowError):
        return None
