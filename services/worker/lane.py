"""The execution lane: one batch at a time on one device, fair across models.

    choose     the next model in turn that has a batch to run
    screen     ask Redis which of its jobs are taken, answered or cancelled, and mark the others as running
    run        in the lane's thread, with a deadline; under load the next batch is screened meanwhile
    hand on    encode and store the answers beside the next run, a bounded number of batches behind

A batch that fails is run again job by job, so that one bad request does not hurt its neighbours. A run all of whose
jobs have been cancelled, or have expired, is ended. The mark of a run that ends the process stays: see
`shared.replies`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from services.worker.batching import answer as asked_outputs
from services.worker.batching import concatenate, take_apart
from services.worker.expiry import Expiry
from services.worker.observing import Observer
from services.worker.receipts import memberships, queue_ns
from services.worker.settle import answer
from shared.background import set_within
from shared.codec import rfc3339
from shared.errors import AiaasError, RepliesUnavailable, RequestCancelled, TooLarge
from shared.outcome_events import Timings
from shared.replies import Ran
from shared.tensors import output_digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
    from concurrent.futures import Executor

    from services.worker.claims import OutputStore
    from services.worker.job import Job
    from services.worker.model_server import Batch, ModelServer
    from services.worker.processing.processor import Processor
    from services.worker.receipts import Receipts
    from services.worker.settings import WorkerSettings
    from services.worker.settle import Answer, Settlement
    from shared.oip import InferenceRequest
    from shared.outcome_events import BatchMembership
    from shared.replies import Replies
    from shared.tensors import Array, Tensor

_IN_TURN = 2
"""Batches that are being screened or run: one on the device, and, under load, the next."""
_SLOW_NS = 5_000_000
_BATCHES_BEHIND = 4
"""Batches whose answers may be in the making while another runs."""
_FINISH_HERE_BYTES = 64 * 1024
"""Outputs of a batch on which the steps behind a model take less than a change of threads."""
_TICK_S = 0.1
"""How often queued jobs are looked at although nothing happened: failed loads are retried."""


class Counts:
    """Runs of one variant since they were last taken, for the metrics."""

    def __init__(self) -> None:
        self.sizes: Counter[int] = Counter()
        self.compute_infer_ns = 0


class Lane:
    """The loop over the models of this worker."""

    def __init__(
        self,
        settings: WorkerSettings,
        replies: Replies,
        settlement: Settlement,
        receipts: Receipts,
        executor: Executor,
        output_store: OutputStore,
    ) -> None:
        self._settings = settings
        self._replies = replies
        self._settlement = settlement
        self._receipts = receipts
        self._executor = executor
        self._output_store = output_store
        self._answers: asyncio.TaskGroup
        self._servers: list[ModelServer] = []
        self._expiry = Expiry(self._servers)
        self._work = asyncio.Event()
        self._nothing_to_do = asyncio.Event()
        """For who stands aside, and cleared by them; set when the lane begins to wait for work."""
        self._turn = asyncio.Lock()
        """Whoever has it chooses the next batch, or waits for one; a wake-up then wakes one, not both."""
        self._device = asyncio.Lock()
        self._under_way = 0
        """Batches that were chosen and have not run yet."""
        self._alone = False
        """Whether what is on the device may be what kills workers: nothing else is marked as running beside it."""
        self._slow = False
        """Whether the last run was."""
        self._begun_ns = float("-inf")
        """When the last run began."""
        self._runs = 0
        self._behind = asyncio.Semaphore(_BATCHES_BEHIND)
        self.ran: defaultdict[tuple[str, int, str], Counts] = defaultdict(Counts)
        self.observer = Observer()

    def add(self, server: ModelServer) -> None:
        """Serve one more model."""
        self._servers.append(server)

    def wake(self) -> None:
        """There may be something to run, or to wait for."""
        self._work.set()
        self._expiry.look()

    @property
    def is_busy(self) -> bool:
        """Whether a batch is under way, or there may be another: what only waits for its model to load is no work."""
        return self._under_way > 0 or self._work.is_set()

    def is_live(self, within_s: float) -> bool:
        """Whether it has work, or had some within so many seconds."""
        return self.is_busy or time.perf_counter_ns() - self._begun_ns < within_s * 1e9

    @asynccontextmanager
    async def aside(self, patience_s: float) -> AsyncIterator[bool]:
        """The device, for what is nobody's request: once there is nothing else to do, or, later, between two batches.

        Yields whether there is; who gets the device then, after `patience_s`, keeps it for a moment only.
        """
        give_up_s = time.monotonic() + patience_s
        while self.is_busy and (left_s := give_up_s - time.monotonic()) > 0:
            self._nothing_to_do.clear()
            await set_within(self._nothing_to_do, left_s)
        async with self._device:
            yield self.is_busy

    async def run(self) -> None:
        """Run batches until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._answers:
                for _ in range(_IN_TURN):
                    self._answers.create_task(self._take_turns())
        finally:
            self._expiry.stop()

    async def _take_turns(self) -> None:
        while True:
            async with self._turn:
                while (batch := self._choose()) is None:
                    await self._wait()
                self._under_way += 1
            await self._behind.acquire()
            finish = await self._execute(batch)
            task = self._answers.create_task(finish)
            task.add_done_callback(lambda _: self._behind.release())

    async def _wait(self) -> None:
        if not self.is_busy:
            self._nothing_to_do.set()
        queued = any(server.waiting for server in self._servers)
        await set_within(self._work, _TICK_S if queued else None)
        self._work.clear()

    def _choose(self) -> Batch | None:
        """The batch of the first model in turn that has one; that model goes to the end of the turn.

        While another batch is under way only one of some size is chosen ahead: others may still grow until then.
        And only behind runs that take their time: the way to Redis is not worth two batches at once behind a quick one.
        """
        busy = self._under_way > 0
        if busy and (self._alone or not self._slow):
            return None
        for index, server in enumerate(self._servers):
            batch = server.next_batch() if server.waiting and (not busy or server.has_good_batch) else None
            if batch is not None:
                self._servers.append(self._servers.pop(index))
                return batch
        return None

    async def _execute(self, batch: Batch) -> Coroutine[Any, Any, None]:
        """Screen and run a batch; what is left to do for it, beside the next run."""
        self._runs += 1
        run = f"{self._settings.owner}#{self._runs}"
        jobs = await self._settlement.screen(batch.jobs, run)
        if self._device.locked():
            jobs = await self._still_due(jobs)
        async with self._device:
            self._alone = any(job.deaths for job in jobs)
            answers = await self._run_due(batch, jobs)
        self._under_way -= 1
        self._work.set()
        ran = Ran(batch.jobs[0].model, run, tuple({job.ledger.where for job in batch.jobs}))
        return self._hand_on(answers, ran)

    async def _hand_on(self, answers: Sequence[Answer], ran: Ran) -> None:
        """Settle what a run gave; outputs that belong in the artifact store first go there, beside everything."""
        await self._settlement.answer([answered for answered in answers if not answered.to_store], ran)
        for answered in answers:
            if answered.to_store:
                await self._output_store.hand_over(answered, self._answers)

    async def _still_due(self, jobs: list[Job]) -> list[Job]:
        """Wait until the device is free; jobs expire meanwhile as they do in their queue, and are not given back."""
        while deadlines_ms := [job.headers.deadline_ms for job in jobs if job.headers.deadline_ms is not None]:
            now_ms = time.time_ns() // 1_000_000
            if min(deadlines_ms) < now_ms:
                late = [job for job in jobs if job.is_overdue(now_ms)]
                jobs = [job for job in jobs if not job.is_overdue(now_ms)]
                await self._settlement.answer([self._settlement.expired(job) for job in late])
                continue
            try:
                async with asyncio.timeout((min(deadlines_ms) + 1 - now_ms) / 1000), self._device:
                    break
            except TimeoutError:
                continue
        return jobs

    async def _run_due(self, batch: Batch, jobs: Sequence[Job]) -> list[Answer]:
        """Run what is still due now that the device is free."""
        now_ms = time.time_ns() // 1_000_000
        late = [job for job in jobs if job.is_overdue(now_ms)]
        due = [job for job in jobs if not job.is_overdue(now_ms)] if late else jobs
        expired = [self._settlement.expired(job) for job in late]
        return (await self._run_or_split(batch, due) if due else []) + expired

    async def _run_or_split(self, batch: Batch, jobs: Sequence[Job]) -> list[Answer]:
        try:
            return await self._run(batch, jobs)
        except AiaasError as err:
            if len(jobs) == 1 or isinstance(err, RequestCancelled):
                return [self._failed(batch, job, err) for job in jobs]
        return [answered for job in jobs for answered in await self._run_or_split(batch, [job])]

    async def _run(self, batch: Batch, jobs: Sequence[Job]) -> list[Answer]:
        signature = batch.variant.signature
        queued_ns = [queue_ns(job) for job in jobs]
        begun_ns = self._begun_ns = time.perf_counter_ns()
        feeds = concatenate([_request(job) for job in jobs], signature)
        fed_ns = time.perf_counter_ns()
        outputs = await batch.engine.run(
            feeds, self._executor, self._settings.max_run_s, lambda: self._all_answered(jobs)
        )
        ran_ns = time.perf_counter_ns()
        counts = [job.plan.rows or 0 if job.plan else 0 for job in jobs]
        self._observe(batch, jobs, counts, feeds, outputs)
        if batch.processor is not None:
            outputs = await self._finish(batch.processor, outputs, feeds)
            signature = batch.processor.signature
        pieces = take_apart(outputs, counts, signature)
        taken_ns = time.perf_counter_ns()
        self._slow = ran_ns - fed_ns > _SLOW_NS
        self._count(jobs, ran_ns - fed_ns)
        completed_at = rfc3339(time.time_ns())
        return [
            self._succeeded(
                batch,
                job,
                asked_outputs(_request(job), pieces[index], batch.processor.defaults if batch.processor else ()),
                membership,
                Timings(
                    queue=queued_ns[index],
                    compute_input=fed_ns - begun_ns + job.preparation_ns,
                    compute_infer=ran_ns - fed_ns,
                    compute_output=taken_ns - ran_ns,
                ),
                completed_at,
            )
            for index, (job, membership) in enumerate(zip(jobs, memberships(jobs), strict=True))
        ]

    def _observe(
        self,
        batch: Batch,
        jobs: Sequence[Job],
        counts: Sequence[int],
        feeds: Mapping[str, Array],
        outputs: Sequence[Array],
    ) -> None:
        plan = jobs[0].plan
        if plan is not None:
            key = (jobs[0].model, plan.version.number, plan.variant.name)
            requests = None if plan.rows is None else counts
            self.observer.saw(key, batch.variant.signature, feeds, outputs, requests)

    async def _finish(self, processor: Processor, outputs: list[Array], feeds: Mapping[str, Array]) -> list[Array]:
        """The steps behind the model: here if there is little to compute, else where the model ran."""
        if sum(array.nbytes for array in outputs) <= _FINISH_HERE_BYTES:
            return processor.finish(outputs, feeds)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, processor.finish, outputs, feeds)

    async def _all_answered(self, jobs: Sequence[Job]) -> bool:
        """Whether nobody waits for this run: all its jobs were cancelled, or have expired."""
        try:
            return None not in await self._replies.get([(job.model, job.request_id) for job in jobs])
        except RepliesUnavailable:
            return False

    def _succeeded(
        self,
        batch: Batch,
        job: Job,
        outputs: tuple[Tensor, ...],
        membership: BatchMembership,
        timings: Timings,
        completed_at: str,
    ) -> Answer:
        if (size := sum([len(tensor.data) for tensor in outputs])) > self._settings.max_result_bytes:
            error = TooLarge(f"the answer has {size} bytes, more than {self._settings.max_result_bytes}")
            return self._failed(batch, job, error)
        to_store = self._output_store.takes(_request(job), size)
        digest = None if to_store else output_digest(outputs)
        receipt = self._receipts.succeeded(job, digest, batch.engine.runtime, membership, timings, completed_at)
        return answer(job, receipt, outputs=outputs, to_store=to_store)

    def _failed(self, batch: Batch, job: Job, error: AiaasError) -> Answer:
        [alone] = memberships([job])
        timings = Timings(queue=queue_ns(job))
        receipt = self._receipts.failed_in_run(job, error.code, batch.engine.runtime, alone, timings)
        return answer(job, receipt, error=error)

    def _count(self, jobs: Sequence[Job], infer_ns: int) -> None:
        plan = jobs[0].plan
        if plan is not None:
            ran = self.ran[jobs[0].model, plan.version.number, plan.variant.name]
            ran.sizes[len(jobs)] += 1
            ran.compute_infer_ns += infer_ns


def _request(job: Job) -> InferenceRequest:
    if job.request is None:
        raise AssertionError("a job without a request has an error and is never run")
    return job.request
