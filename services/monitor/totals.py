"""What a version did, in the terms of Triton's statistics: integers that only grow, a part of each series of the fold.

Runs of the model are counted by their first member: a run counts when the outcome at index 0 of its batch does, if it
succeeded. Every run has one first member, and every request one outcome that counts, so no run counts twice, whichever
partitions its members lie in, in whichever order they are read, and however often they were appended; and its times
are added once. It takes no memory of batch ids. Not counted is a run whose first member got its outcome elsewhere
while it ran, by a cancel or its deadline: one request in the batch of them all, and Triton, too, counts successes only.
A batch that failed and was split is as many runs of one, as its receipts say.

What is counted is rows, as Triton does; a request whose receipt tells none counts 1, and a batch of such its requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shared.events import MAX_VERSION
from shared.outcome_events import Duration, ModelStatistics, RunStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.monitor.portion import Portion

MAX_BATCH_SIZE: Final = 4096
"""Larger batches count as this size."""
_MOST: Final = 2**63 - 1
"""What a msgpack integer and every client can hold. True sums stay below; a forged receipt may say anything."""


@dataclass(slots=True)
class Spent:
    """How often, and for how many nanoseconds altogether."""

    count: int = 0
    ns: int = 0

    def add(self, durations_ns: Sequence[int | None]) -> None:
        """So many times more; a duration that the receipt does not tell is none."""
        self.count += len(durations_ns)
        self.ns += sum([each for each in durations_ns if each is not None and each > 0])


@dataclass(slots=True)
class Phases:
    """The phases of a run."""

    compute_input: Spent = field(default_factory=Spent)
    compute_infer: Spent = field(default_factory=Spent)
    compute_output: Spent = field(default_factory=Spent)

    def add(
        self, inputs_ns: Sequence[int | None], infers_ns: Sequence[int | None], outputs_ns: Sequence[int | None]
    ) -> None:
        """More runs, or more requests that were in one."""
        self.compute_input.add(inputs_ns)
        self.compute_infer.add(infers_ns)
        self.compute_output.add(outputs_ns)


@dataclass(slots=True)
class Totals:
    """The numbers of one version."""

    last_ms: int = 0
    last_success_ms: int = 0
    inferences: int = 0
    """Rows."""
    success: Spent = field(default_factory=Spent)
    fail: Spent = field(default_factory=Spent)
    queue: Spent = field(default_factory=Spent)
    phases: Phases = field(default_factory=Phases)
    runs: dict[int, Phases] = field(default_factory=dict)
    """By the number of rows in the batch."""

    @property
    def executions(self) -> int:
        """Runs of the model that succeeded."""
        return sum(runs.compute_infer.count for runs in self.runs.values())

    def add(self, outcomes: Portion) -> None:
        """Take in outcomes that count."""
        self.last_ms = max([self.last_ms, *outcomes.appended_ms])
        success = [status == "succeeded" for status in outcomes.statuses]
        self.fail.add([total_ns for total_ns, well in zip(outcomes.total_ns, success, strict=True) if not well])
        succeeded = outcomes.only(success)
        self.last_success_ms = max([self.last_success_ms, *succeeded.appended_ms])
        self.success.add(succeeded.total_ns)
        self.queue.add(succeeded.queue_ns)
        ran = succeeded.only([batch is not None for batch in succeeded.batches])
        self.inferences += sum([rows if rows is not None and rows > 1 else 1 for rows in ran.rows])
        self.phases.add(ran.compute_input_ns, ran.compute_infer_ns, ran.compute_output_ns)
        for receipt, index in zip(ran.receipts, ran.batch_indexes, strict=True):
            if index == 0 and receipt.batch is not None:
                batch, timings = receipt.batch, receipt.timings_ns
                size = bounded_size(batch.size if batch.total_rows is None else batch.total_rows)
                self.runs.setdefault(size, Phases()).add(
                    [timings.compute_input], [timings.compute_infer], [timings.compute_output]
                )

    def event(self, model: str, version: int, offsets: dict[int, int]) -> ModelStatistics | None:
        """The numbers as they are now, with the offsets that they hold at; None for a version that can't exist."""
        if not 1 <= version <= MAX_VERSION:
            return None
        return ModelStatistics(
            model=model,
            version=version,
            last_inference_ms=self.last_ms,
            inferences=min(self.inferences, _MOST),
            success=_duration(self.success),
            fail=_duration(self.fail),
            queue=_duration(self.queue),
            compute_input=_duration(self.phases.compute_input),
            compute_infer=_duration(self.phases.compute_infer),
            compute_output=_duration(self.phases.compute_output),
            runs=tuple(_runs(size, runs) for size, runs in sorted(self.runs.items())),
            offsets=dict(offsets),
        )


def bounded_size(size: int) -> int:
    """The size that a batch counts as, whatever its receipt says."""
    return min(max(size, 1), MAX_BATCH_SIZE)


def _duration(spent: Spent) -> Duration:
    return Duration(count=spent.count, ns=min(spent.ns, _MOST))


def _runs(size: int, runs: Phases) -> RunStatistics:
    return RunStatistics(
        batch_size=size,
        compute_input=_duration(runs.compute_input),
        compute_infer=_duration(runs.compute_infer),
        compute_output=_duration(runs.compute_output),
    )
