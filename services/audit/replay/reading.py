"""The batches of what an auditor selects, read from a source.

By time one reading is enough, with a margin for members on the other side of its ends. Requests by id or offset are
looked up first, and then all that was appended about when they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.audit.records import Selection
from services.audit.replay.batches import SETTLED_MS, Assembler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.audit.records import RecordedOutcome
    from services.audit.replay.batches import Batch
    from services.audit.source import Source

    Seen = Callable[[RecordedOutcome], None]


@dataclass
class NotRun:
    """Outcomes that are selected and of which nothing ran: expired, cancelled, refused, answered before."""

    count: int = 0


async def batches(
    source: Source, selection: Selection, not_run: NotRun, seen: Seen = lambda _: None
) -> AsyncIterator[Batch]:
    """The batches with at least one member that is selected, each once; `seen` is told of each selected outcome.

    Raises:
        LogUnavailable, RepliesUnavailable, StoreUnavailable: a server did not answer.
    """
    wide = await _widened(source, selection)
    if wide is None:
        return
    assembler = Assembler()
    async for outcome in source.outcomes(wide):
        wanted = selection.wants(outcome.receipt, outcome.timestamp_ms)
        if wanted:
            seen(outcome)
        if outcome.receipt.batch is None:
            not_run.count += wanted
            continue
        for batch in assembler.add(outcome, wanted=wanted):
            yield batch
    for batch in assembler.rest():
        yield batch


async def _widened(source: Source, selection: Selection) -> Selection | None:
    """What has to be read to have whole batches; None if nothing is selected."""
    since_ms, until_ms, model = selection.since_ms, selection.until_ms, selection.model
    if selection.request_ids is not None or selection.offsets is not None:
        found = [(outcome.timestamp_ms, outcome.receipt.model_name) async for outcome in source.outcomes(selection)]
        if not found:
            return None
        times, models = {at for at, _ in found}, {name for _, name in found}
        since_ms, until_ms = min(times), max(times) + 1
        model = next(iter(models)) if len(models) == 1 else None
    return Selection(
        model=model,
        since_ms=None if since_ms is None else since_ms - SETTLED_MS,
        until_ms=None if until_ms is None else until_ms + SETTLED_MS,
    )
