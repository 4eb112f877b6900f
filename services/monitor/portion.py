"""Outcomes of one version, taken apart once for all who count them or make rows of them."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.outcome_events import BatchMembership, Coordinates, Receipt


class Portion(NamedTuple):
    """Outcomes that count, column by column, which takes half the time of one after the other."""

    receipts: list[Receipt]
    log_partitions: list[int]
    log_offsets: list[int]
    appended_ms: list[int]
    statuses: list[str]
    error_codes: list[str | None]
    duplicates_of: list[Coordinates | None]
    reexecuted: list[bool]
    batches: list[BatchMembership | None]
    batch_sizes: list[int | None]
    batch_indexes: list[int | None]
    rows: list[int | None]
    queue_ns: list[int | None]
    compute_input_ns: list[int | None]
    compute_infer_ns: list[int | None]
    compute_output_ns: list[int | None]
    total_ns: list[int]
    """The sum of the four before, as far as the request got."""

    @property
    def spent_ns(self) -> tuple[Sequence[int | None], ...]:
        """By phase: the last five columns."""
        return self[-5:]

    def only(self, wanted: Sequence[bool]) -> Portion:
        """Those outcomes that are wanted, which mostly are all."""
        columns: Sequence[list[Any]] = self
        return self if all(wanted) else Portion(*[list(compress(column, wanted)) for column in columns])

    def extend(self, other: Portion) -> None:
        """Append another's outcomes."""
        columns: Sequence[list[Any]] = self
        others: Sequence[list[Any]] = other
        for column, more in zip(columns, others, strict=True):
            column.extend(more)


def nothing() -> Portion:
    """No outcomes yet."""
    return Portion(*[[] for _ in Portion._fields])


def portion(records: Sequence[tuple[int, int, Receipt, int]]) -> Portion:
    """Outcomes of the log, each with its partition and offset, and when it was appended, in ms, as columns."""
    receipts = [receipt for _, _, receipt, _ in records]
    batches = [each.batch for each in receipts]
    timings = [each.timings_ns for each in receipts]
    queue_ns: list[int | None] = [each.queue for each in timings]
    compute_input_ns = [each.compute_input for each in timings]
    compute_infer_ns = [each.compute_infer for each in timings]
    compute_output_ns = [each.compute_output for each in timings]
    spent_ns = map(_spent, (queue_ns, compute_input_ns, compute_infer_ns, compute_output_ns))
    return Portion(
        receipts=receipts,
        log_partitions=[partition for partition, _, _, _ in records],
        log_offsets=[offset for _, offset, _, _ in records],
        appended_ms=[at_ms for _, _, _, at_ms in records],
        statuses=[each.status for each in receipts],
        error_codes=[each.error_code for each in receipts],
        duplicates_of=[each.duplicate_of for each in receipts],
        reexecuted=[each.reexecuted for each in receipts],
        batches=batches,
        batch_sizes=[None if each is None else each.size for each in batches],
        batch_indexes=[None if each is None else each.index for each in batches],
        rows=[None if each is None else each.rows for each in batches],
        queue_ns=queue_ns,
        compute_input_ns=compute_input_ns,
        compute_infer_ns=compute_infer_ns,
        compute_output_ns=compute_output_ns,
        total_ns=[one + two + three + four for one, two, three, four in zip(*spent_ns, strict=True)],
    )


def _spent(durations_ns: Sequence[int | None]) -> list[int]:
    """What each adds to a sum: nothing where there was none, or a clock went backwards."""
    return [each if each is not None and each > 0 else 0 for each in durations_ns]
