"""Redis, seen from the worker: before a run, who owns an id and what is answered already; after it, the answer.

Every answer, failure included, is offered through the set-if-absent arbiter, and the *winner* is what goes into the
outcome log: a redelivered record gets the receipt that its first delivery stored, a cancel that came first stands.
While Redis is away, work waits here with back-off; Kafka keeps being polled elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from services.worker.job import Job
from services.worker.ledger import Outcome, ReplyCopy
from shared import logs
from shared.codec import decode_event, encode_event
from shared.errors import (
    AiaasError,
    DeadlineExceeded,
    DuplicateUnresolved,
    IdConflict,
    LogUnavailable,
    RepliesUnavailable,
    RunError,
)
from shared.outcome_events import Receipt
from shared.results import Result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from services.worker.job_spans import JobSpans
    from services.worker.receipts import Receipts
    from services.worker.settings import WorkerSettings
    from shared.dead_letters import DeadLetters
    from shared.outcome_events import Coordinates, Status
    from shared.replies import Claim, Ran, Replies
    from shared.tensors import Tensor

T = TypeVar("T")
_MAX_WAIT_S = 2.0
_DUPLICATE_POLL_S = 0.5


async def persistently(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until Redis or Kafka answers, with a bounded back-off and a log line that says what for."""
    wait_s = 0.05
    while True:
        try:
            return await attempt()
        except (RepliesUnavailable, LogUnavailable) as err:
            logs.get().warning("waiting", what=what, error=err.message, retry_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)


class Answer(msgspec.Struct, frozen=True):
    """What a job is to be answered with. `receipt` is the one in `result`, before it was encoded.

    `to_store` says that `claims.OutputStore` has to see to the outputs, and to their digest, before it may be settled.
    """

    job: Job
    receipt: Receipt
    result: Result
    to_store: bool = False


def answer(
    job: Job,
    receipt: Receipt,
    *,
    outputs: tuple[Tensor, ...] = (),
    error: AiaasError | None = None,
    to_store: bool = False,
) -> Answer:
    """An answer as the receipt has it."""
    result = Result(
        id=job.request_id,
        status=receipt.status,
        model_name=job.model,
        model_version=receipt.model_version,
        outputs=outputs,
        error=None if error is None else {"code": error.code, "message": error.message},
        receipt=encode_event(receipt),
    )
    return Answer(job, receipt, result, to_store)


class Settlement:
    """Screens jobs before they run and settles them after. `completed` is told of jobs that have their outcome."""

    def __init__(
        self,
        settings: WorkerSettings,
        replies: Replies,
        dead_letters: DeadLetters,
        receipts: Receipts,
        completed: Callable[[Sequence[Job]], None],
    ) -> None:
        self._settings = settings
        self._replies = replies
        self._dead_letters = dead_letters
        self._receipts = receipts
        self._completed = completed
        self.spans: JobSpans | None = None
        """Where requests are traced."""
        self._duplicates: set[asyncio.Task[None]] = set()

    async def screen(self, jobs: Sequence[Job], run: str | None = None) -> list[Job]:
        """The jobs that are still to be run; the others get their outcome here.

        At most one job of an id may be among them. In this order: taken by another record, answered already. `run`
        names the run that they are about to be in.
        """
        claims = {job.request_id: job.claim for job in jobs}
        screened = await persistently("redis", lambda: self._replies.screen(jobs[0].model, claims, run))
        remaining: list[Job] = []
        for job in jobs:
            found, claim = screened[job.request_id], claims[job.request_id]
            if found.owner is not claim and not found.owner.same_record(claim):
                await self._taken(job, found.owner)
            elif found.result is not None:
                await self._answered(job, found.result)
            else:
                remaining.append(job)
        return remaining

    async def _answered(self, job: Job, result: Result) -> None:
        """A job whose id has an answer: its own, redelivered, or, as ids outlive their claims a little, another's."""
        receipt = self._receipt_of(job, result)
        first = receipt.request
        if (first.topic, first.partition, first.offset) == (job.claim.topic, job.claim.partition, job.claim.offset):
            self._complete([(job, receipt, result)])
        elif (receipt.tenant, receipt.input_sha256) == (job.headers.tenant, job.input_sha256):
            self._complete([(job, self._receipts.duplicate(job, first, result), result)])
        else:
            await self._unowned(job, _conflict(job, first))

    async def fail(self, jobs: Sequence[Job]) -> None:
        """Settle jobs that will not run, by their `error`. Any number of them may share an id."""
        for some in _without_repeats(jobs):
            remaining = await self.screen(some)
            await self.answer(
                [self._failure(job, job.error or RunError("failed without a reason")) for job in remaining]
            )

    async def answer(self, answers: Sequence[Answer], ran: Ran | None = None) -> None:
        """Offer answers, tell the gateways that wait, complete the jobs with the winners. `ran` ends a run."""
        jobs = [answer.job for answer in answers]
        unrun = [(job, job.error) for job in jobs if job.error is not None and not isinstance(job.error, RunError)]
        if unrun:
            await asyncio.gather(*(self._bury(job, error) for job, error in unrun))
        results = [answer.result for answer in answers]
        reply_to = [answer.job.headers.reply_channel for answer in answers]
        winners = await persistently("redis", lambda: self._replies.put(results, reply_to, ran))
        self._complete(
            [
                (ours.job, ours.receipt if winner is ours.result else self._receipt_of(ours.job, winner), winner)
                for ours, winner in zip(answers, winners, strict=True)
            ]
        )

    def _failure(self, job: Job, error: AiaasError) -> Answer:
        """The answer of a job that ends without a run."""
        status: Status = "expired" if isinstance(error, DeadlineExceeded) else "failed"
        return answer(job, self._receipts.not_run(job, status, error.code), error=error)

    def expired(self, job: Job) -> Answer:
        """The answer of a job whose deadline passed before it ran."""
        job.error = DeadlineExceeded("the deadline passed before the request ran")
        return self._failure(job, job.error)

    def _receipt_of(self, job: Job, winner: Result) -> Receipt:
        """The winner is the answer and the receipt; one that a gateway set (cancel, expiry) has no receipt yet."""
        if winner.receipt is not None:
            return decode_event(Receipt, winner.receipt)
        return self._receipts.not_run(job, winner.status, winner.error["code"] if winner.error else None)

    def _complete(self, outcomes: Sequence[tuple[Job, Receipt, Result]]) -> None:
        """These jobs have their outcomes."""
        for job, receipt, winner in outcomes:
            copy = None
            if job.headers.reply_topic and (job.error is None or isinstance(job.error, RunError)):
                copy = ReplyCopy(job.headers.reply_topic, job.record.key, job.headers.echo, winner)
            encoded = _encoded(receipt, winner)
            job.ledger.complete(job.record.offset, Outcome(receipt.request_id, encoded, copy))
        self._completed([job for job, _, _ in outcomes])
        logs.canonical("request", [_line(*outcome) for outcome in outcomes])
        if self.spans is not None:
            self.spans.settled(outcomes)

    async def _bury(self, job: Job, error: AiaasError) -> None:
        await persistently("dead letter", lambda: self._dead_letters.publish(job.record, error, attempt=job.deaths + 1))

    # ------------------------------------------------------------------ ids that belong to another record

    async def _taken(self, job: Job, owner: Claim) -> None:
        if not owner.same_request(job.claim):
            await self._unowned(job, _conflict(job, owner))
            return
        task = asyncio.create_task(self._duplicate(job, owner))
        self._duplicates.add(task)
        task.add_done_callback(self._duplicates.discard)

    async def _duplicate(self, job: Job, owner: Claim) -> None:
        """Repeat the first request's outcome once it is there. Bounded by the ledger, which holds the rows behind."""
        give_up_s = time.monotonic() + self._settings.duplicate_wait_s
        while time.monotonic() < give_up_s and not job.ledger.closed:
            [result] = await persistently("redis", lambda: self._replies.get([(job.model, job.request_id)]))
            if result is not None:
                self._complete([(job, self._receipts.duplicate(job, owner, result), result)])
                return
            await asyncio.sleep(_DUPLICATE_POLL_S)
        await self._unowned(job, DuplicateUnresolved("the first request with this id has no answer yet"))

    async def _unowned(self, job: Job, error: AiaasError) -> None:
        """Fail a job whose id, and so whose result in Redis, is another record's."""
        job.error = error
        await self._bury(job, error)
        failed = answer(job, self._receipts.not_run(job, "failed", error.code), error=error)
        self._complete([(job, failed.receipt, failed.result)])


def _without_repeats(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """The jobs in their order, in as many lists as it takes that none has an id twice."""
    some: dict[str, Job] = {}
    for job in jobs:
        if job.request_id in some:
            yield list(some.values())
            some = {}
        some[job.request_id] = job
    if some:
        yield list(some.values())


def _conflict(job: Job, first: Claim | Coordinates) -> IdConflict:
    where = f"{first.topic}/{first.partition} offset {first.offset}"
    return IdConflict(f"id {job.request_id!r} belongs to another request: {where}")


def _encoded(receipt: Receipt, result: Result) -> bytes:
    """A receipt's bytes: those in the answer, unless it has none, or another record's."""
    if result.receipt is None or receipt.duplicate_of is not None:
        return encode_event(receipt)
    return result.receipt


def _line(job: Job, receipt: Receipt, result: Result) -> dict[str, Any]:
    """The canonical line of a request."""
    record, timings = job.record, receipt.timings_ns
    return {
        "request_id": job.request_id,
        "trace_id": logs.trace_id(job.headers.traceparent),
        "model": job.model,
        "version": receipt.model_version,
        "status": receipt.status,
        "code": receipt.error_code,
        "error": result.error["message"] if result.error else None,
        "at": f"{record.topic}/{record.partition}/{record.offset}",
        "batch_size": receipt.batch.size if receipt.batch else None,
        "queue_ms": timings.queue / 1e6,
        "infer_ms": timings.compute_infer / 1e6 if timings.compute_infer else None,
    }
