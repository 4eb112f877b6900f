"""The jobs of one model that wait for a run, in two queues: urgent ones before usual ones, and none starved.

A batch is made from the first queue and filled up from the second, so that urgency costs no throughput. Which queue is
the first is decided batch by batch: the urgent one, but after `_URGENT_IN_A_ROW` such batches the usual one, if
anything waits there.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.worker.job import Job

_URGENT_IN_A_ROW: Final = 4


class Waiting:
    """Two queues of jobs, told apart by `Job.high`."""

    def __init__(self) -> None:
        self._high: deque[Job] = deque()
        self._usual: deque[Job] = deque()
        self._urgent_in_a_row = 0

    def __len__(self) -> int:
        return len(self._high) + len(self._usual)

    def count(self, *, high: bool) -> int:
        """How many wait in one of the queues."""
        return len(self._high if high else self._usual)

    def add(self, job: Job) -> None:
        """Put a job at the end of its queue."""
        (self._high if job.high else self._usual).append(job)

    def in_turn(self) -> list[deque[Job]]:
        """The queues that are not empty, in the order in which the next batch takes from them."""
        turns = [self._high, self._usual]
        if self._urgent_in_a_row >= _URGENT_IN_A_ROW:
            turns.reverse()
        return [queue for queue in turns if queue]

    def taken(self, *, high: bool) -> None:
        """A batch was made whose first job was urgent, or not."""
        self._urgent_in_a_row = self._urgent_in_a_row + 1 if high else 0

    def remove_if(self, condition: Callable[[Job], bool]) -> list[Job]:
        """Take out the jobs that fulfil a condition."""
        removed: list[Job] = []
        for queue in (self._high, self._usual):
            gone = {id(job): job for job in queue if condition(job)}
            if gone:
                kept = [job for job in queue if id(job) not in gone]
                queue.clear()
                queue.extend(kept)
                removed += gone.values()
        return removed

    def __iter__(self) -> Iterator[Job]:
        yield from self._high
        yield from self._usual
