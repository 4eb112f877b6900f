"""What some requests need before they can wait for a run: the steps of `app`, in order, each for those that want it.

Steps work beside the lane, a bounded number of jobs at a time, so that a large tensor on its way from the artifact
store holds up nobody else. A job in preparation is in no queue; when it is done it goes to its queue, or is settled by
its error.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from shared import logs
from shared.errors import AiaasError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.worker.job import Job
    from services.worker.ledger import Ledger

_AT_ONCE: Final = 32
"""Of one model. Steps have bounds of their own on what costs: threads, bytes."""


class Step(Protocol):
    """One thing that some requests need."""

    def wanted(self, job: Job) -> bool:
        """Whether the job still needs it. Asked often: nothing but a look at the job."""

    async def apply(self, job: Job) -> None:
        """Do it: the job's `request` is then what the next step, or the run, needs, and `wanted` is false.

        Raises:
            AiaasError: the job can't be run; it will be its outcome.
        """


class Preparation:
    """The jobs of one model that are being prepared. `done` takes each when it is ready or has an `error`."""

    def __init__(self, steps: Sequence[Step], done: Callable[[Job], None]) -> None:
        self._steps = steps
        self._done = done
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)

    def wanted(self, job: Job) -> bool:
        """Whether a job has to be prepared before it can run."""
        for step in self._steps:  # noqa: SIM110 - it is asked of every job, and a generator costs more than the answer
            if step.wanted(job):
                return True
        return False

    def start(self, job: Job) -> None:
        """Prepare a job."""
        task = self._tasks[job] = asyncio.create_task(self._prepare(job))
        task.add_done_callback(lambda _: self._tasks.pop(job, None))

    def drop(self, ledger: Ledger) -> list[Job]:
        """Stop preparing the jobs of a ledger, and give them back."""
        dropped = [job for job in self._tasks if job.ledger is ledger]
        for job in dropped:
            self._tasks.pop(job).cancel()
        return dropped

    async def _prepare(self, job: Job) -> None:
        try:
            async with self._places:
                for step in self._steps:
                    if step.wanted(job):
                        await step.apply(job)
        except AiaasError as err:
            job.error = err
        except Exception:  # noqa: BLE001 - as in reading: one record must not stop its partition, not by a bug either
            logs.get().exception("a request could not be prepared", request_id=job.request_id, model=job.model)
            job.error = InvalidInput("the request could not be prepared")
        self._done(job)
