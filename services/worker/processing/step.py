"""Preprocessing as a step of a job's preparation: off the event loop, few at a time, each for a bounded time.

A job is prepared for one variant. If another answers by the time it is queued, it is prepared again, from the request
as it came; so the job keeps that.

While a job is being prepared its record is marked as in a run (see `Replies.screen`): a picture that crashes a decoder,
and the process with it, is found by the mark, as one that crashes a model.

Nothing ends a thread. A picture or a text that takes longer than it may fails its request, but keeps its thread until
it is done, which the bounds on both make certain; with all threads kept, preparation waits, and jobs meet deadlines.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from services.worker.settle import persistently
from shared.errors import DeadlineExceeded, RunTimeout
from shared.processed_signature import wants_preprocessing
from shared.replies import Ran

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.worker.intake import HeldBytes
    from services.worker.job import Job
    from services.worker.processing.processor import Processor
    from services.worker.settings import WorkerSettings
    from services.worker.shelf import Shelf
    from shared.oip import InferenceRequest
    from shared.replies import Replies

    Prepare = Callable[[], InferenceRequest]

_LOOK_AGAIN_S: Final = 5.0
"""How long a job waits for its variant to be loaded before it is asked again which version answers it."""
_MARKS_AT_ONCE: Final = 8
"""Connections to Redis that may be busy with marks."""
_GRACE_S: Final = 1.0
"""How much longer than it may one element is waited for."""


class Preprocessing:
    """Turns texts and pictures of jobs into tensors; a `Step` of `services.worker.preparation`."""

    def __init__(self, settings: WorkerSettings, shelf: Shelf, held: HeldBytes, replies: Replies) -> None:
        self._shelf = shelf
        self._held = held
        self._replies = replies
        self._owner = settings.owner
        self._timeout_s = settings.max_preprocessing_s
        self._executor = ThreadPoolExecutor(settings.preprocessing_threads, "preprocessing")
        self._free = asyncio.Semaphore(settings.preprocessing_threads)
        self._marking = asyncio.Semaphore(_MARKS_AT_ONCE)
        self._runs = 0

    def wanted(self, job: Job) -> bool:
        """Whether the job's request is not, or not yet, what its variant takes."""
        plan, request = job.plan, job.request
        if plan is None or request is None:
            return False
        if job.original is not None:
            return job.prepared_for != plan.variant.key[:2]
        processing = plan.variant.processing
        return processing is not None and wants_preprocessing(request, processing)

    async def apply(self, job: Job) -> None:
        """Prepare the job for the variant of its plan, or for none that is not in memory soon: it is planned again.

        Raises:
            ModelNotReady: the variant did not load.
            DeadlineExceeded: nobody waits for it any more.
            RunTimeout: it took too long.
            InvalidInput, ExecutionFailed, TooLarge: as `Processor.prepare`.
        """
        plan = job.plan
        if plan is None:
            raise AssertionError("a job is planned before it is prepared")
        try:
            async with asyncio.timeout(_LOOK_AGAIN_S):
                processor = await self._shelf.loaded_processor(plan.variant)
        except TimeoutError:
            return
        if job.original is not None:
            job.request, job.original, job.prepared_for = job.original, None, None
        request = job.request
        if processor is None or request is None or not processor.is_due(request):
            return
        processor.validate(request)
        prepared = await self._in_thread(processor, request, job)
        self._keep(job, sum(len(tensor.data) for tensor in prepared.inputs))
        job.request, job.original, job.prepared_for = prepared, request, plan.variant.key[:2]

    @asynccontextmanager
    async def _marked(self, job: Job) -> AsyncIterator[None]:
        """Marks the record as in a run that this process may die of."""
        self._runs += 1
        run = f"{self._owner}#p{self._runs}"
        async with self._marking:
            await persistently("redis", lambda: self._replies.screen(job.model, {job.request_id: job.claim}, run))
        try:
            yield
        finally:
            ran = Ran(job.model, run, (job.claim.where,))
            async with self._marking:
                await persistently("redis", lambda: self._replies.put([], ran=ran))

    async def _in_thread(self, processor: Processor, request: InferenceRequest, job: Job) -> InferenceRequest:
        """The prepared request.

        Marks are set before a thread is waited for, since that lets many be set at a time. Not that of a record that a
        worker has died with: it should share the blame for the next death with as few as possible.
        """
        async with AsyncExitStack() as stack:
            if not job.deaths:
                await stack.enter_async_context(self._marked(job))
            start = await stack.enter_async_context(self._thread(job))
            if job.deaths:
                await stack.enter_async_context(self._marked(job))
            begun_ns = time.perf_counter_ns()
            preparing = start(partial(processor.prepare, request, self._timeout_s))
            done, _ = await asyncio.wait({preparing}, timeout=self._timeout_s + _GRACE_S)
            job.preparation_ns += time.perf_counter_ns() - begun_ns
        if not done:
            raise RunTimeout(f"preprocessing took longer than {self._timeout_s:g} s")
        return preparing.result()

    @asynccontextmanager
    async def _thread(self, job: Job) -> AsyncIterator[Callable[[Prepare], asyncio.Future[InferenceRequest]]]:
        """A free thread, once there is one, as a function that starts something in it; taken until that is done."""
        try:
            async with asyncio.timeout(_remaining_s(job)):
                await self._free.acquire()
        except TimeoutError as err:
            raise _late() from err
        started: list[asyncio.Future[InferenceRequest]] = []

        def start(prepare: Prepare) -> asyncio.Future[InferenceRequest]:
            started.append(asyncio.get_running_loop().run_in_executor(self._executor, prepare))
            started[0].add_done_callback(self._ended)
            return started[0]

        try:
            if job.is_overdue(time.time_ns() // 1_000_000):
                raise _late()
            yield start
        finally:
            if not started:
                self._free.release()

    def _ended(self, preparing: asyncio.Future[InferenceRequest]) -> None:
        """A thread is free again, whoever still waited for what it did."""
        self._free.release()
        if not preparing.cancelled():
            preparing.exception()  # looked at: of an error that came too late nobody needs to hear

    def _keep(self, job: Job, size_bytes: int) -> None:
        """Count what the job holds besides its record, once."""
        grown_bytes = size_bytes - job.prepared_bytes
        job.prepared_bytes += grown_bytes
        job.size_bytes += grown_bytes
        self._held.used += grown_bytes

    def close(self) -> None:
        """Let go of the threads; what still runs in one is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the request was prepared")


def _remaining_s(job: Job) -> float | None:
    deadline_ms = job.headers.deadline_ms
    return None if deadline_ms is None else max(0.0, deadline_ms / 1000 - time.time())
