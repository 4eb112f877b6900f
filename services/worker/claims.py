"""Tensors in the artifact store, seen from the worker: fetched before a run, put there after it.

In. A request with claim checks is prepared by `FetchClaims`: beside the lane, one tensor of a request after another,
digest and contents checked. What is fetched counts in a `Room` until its job has its outcome, and who would go
beyond the bound waits its turn; jobs without claim checks are not counted there and never wait. What is wrong with a
claim check is the request's outcome (`artifact_not_found`, `digest_mismatch`, `invalid_input`); a store that is away is
borne for `store_wait_s`, then that is (`store_unavailable`).

Out. `OutputStore` takes the answers that are too large for Redis, or whose caller wants outputs in the store, from the
lane's hands: they are hashed and stored beside the next runs, within a bound of their own, and answered when that is
done. Why blobs are not deleted here stands in `shared.claims`.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from services.worker.settle import answer as answer_of
from shared import claims
from shared.errors import DeadlineExceeded, StoreUnavailable, TooLarge
from shared.signature import validate_inputs
from shared.tensors import output_digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from services.worker.job import Job
    from services.worker.settings import WorkerSettings
    from services.worker.settle import Answer
    from shared.artifacts import ArtifactStore
    from shared.oip import InferenceRequest
    from shared.tensors import Tensor


class Room:
    """Room for so many bytes at a time, but always for those of one. Who has to wait does so in order."""

    def __init__(self, limit: int) -> None:
        self.used = 0
        self._limit = limit
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, size_bytes: int) -> None:
        """Return when there is room, which is taken then."""
        async with self._turn:
            while self.used and self.used + size_bytes > self._limit:
                self._freed.clear()
                await self._freed.wait()
            self.used += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Free what was taken."""
        self.used -= size_bytes
        self._freed.set()


async def resolve(request: InferenceRequest, store: ArtifactStore, wait_s: float) -> InferenceRequest:
    """The request with all its tensors here. Look at their size first.

    Raises:
        InvalidInput, ArtifactNotFound, DigestMismatch: a claim check is wrong, or what it names.
        StoreUnavailable: the store did not answer for `wait_s`.
    """
    fetched = [await claims.patiently(partial(claims.fetch, store, tensor), wait_s) for tensor in request.inputs]
    return structs.replace(request, inputs=tuple(fetched))


class FetchClaims:
    """The step of preparation for requests with claim checks."""

    def __init__(self, store: ArtifactStore, settings: WorkerSettings, fetched: Room) -> None:
        self._store = store
        self._settings = settings
        self._fetched = fetched

    def wanted(self, job: Job) -> bool:
        """Whether tensors of the job are in the store only."""
        if job.request is not None:
            for tensor in job.request.inputs:
                if tensor.artifact is not None and tensor.claimed:
                    return True
        return False

    async def apply(self, job: Job) -> None:
        """Fetch them.

        Raises:
            InvalidInput: they would not fit the model.
            TooLarge: they are more than all that may be held at a time.
            DeadlineExceeded: the job's deadline passed before they were here.
            As `resolve`.
        """
        request = job.request
        if request is None:
            return
        if job.plan is not None and job.plan.variant.processing is None:
            validate_inputs(request, job.plan.variant.signature)  # rather now than when all of it has been fetched
        size_bytes = sum(tensor.size_bytes for tensor in request.inputs if tensor.claimed)
        if size_bytes > self._settings.max_fetched_bytes:
            raise TooLarge(f"the tensors have {size_bytes} bytes, more than {self._settings.max_fetched_bytes}")
        try:
            async with asyncio.timeout(_remaining_s(job)):
                await self._fetched.take(size_bytes)
                # From here on whoever ends the job gives them back.
                job.fetched_bytes = size_bytes
                job.size_bytes += size_bytes
                job.request = await resolve(request, self._store, self._settings.store_wait_s)
        except TimeoutError as err:
            raise DeadlineExceeded("the deadline passed before the request's tensors were fetched") from err


def _remaining_s(job: Job) -> float | None:
    deadline_ms = job.headers.deadline_ms
    return None if deadline_ms is None else max(0.0, deadline_ms / 1000 - time.time())


class OutputStore:
    """Stores outputs of answers, then has them settled by `settle`."""

    def __init__(
        self, store: ArtifactStore, settings: WorkerSettings, settle: Callable[[Sequence[Answer]], Awaitable[None]]
    ) -> None:
        self._store = store
        self._settings = settings
        self._settle = settle
        self._storing = Room(2 * settings.max_result_bytes)

    def takes(self, request: InferenceRequest, size_bytes: int) -> bool:
        """Whether outputs of this size have to be stored, or are wanted there."""
        return size_bytes > self._settings.claim_bytes or claims.asks(request)

    async def hand_over(self, answer: Answer, tasks: asyncio.TaskGroup) -> None:
        """Store and settle an answer in a task of its own; returns when there is room for it."""
        size_bytes = sum(len(tensor.data) for tensor in answer.result.outputs)
        await self._storing.take(size_bytes)
        tasks.create_task(self._store_and_settle(answer, size_bytes))

    async def _store_and_settle(self, answer: Answer, size_bytes: int) -> None:
        try:
            await self._settle([await self._stored(answer)])
        finally:
            self._storing.give_back(size_bytes)

    async def _stored(self, answer: Answer) -> Answer:
        """The answer with its outputs where they belong, and their digest in the receipt; or the failure to do so."""
        given = answer.result.outputs
        try:
            outputs = await self._put(answer.job, given)
        except StoreUnavailable as err:
            failed = structs.replace(answer.receipt, status="failed", error_code=err.code)
            return answer_of(answer.job, failed, error=err)
        if len(outputs) == 1 and outputs[0].artifact is not None:
            digest = outputs[0].artifact.sha256
        else:
            digest = await asyncio.to_thread(output_digest, given)
        return answer_of(answer.job, structs.replace(answer.receipt, output_sha256=digest), outputs=outputs)

    async def _put(self, job: Job, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, those in the store that are too large for Redis or are wanted there."""
        large = claims.to_store({tensor.name: len(tensor.data) for tensor in outputs}, self._settings.claim_bytes)
        names = [tensor.name for tensor in outputs]
        wanted = large if job.request is None else large | claims.asked_for(job.request, names)
        put = []
        for tensor in outputs:
            if tensor.name in wanted:
                stored = await claims.patiently(partial(claims.put, self._store, tensor), self._settings.store_wait_s)
                put.append(claims.without_data(stored) if tensor.name in large else stored)
            else:
                put.append(tensor)
        return tuple(put)
