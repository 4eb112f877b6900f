"""Replaying what was recorded: from a selection to a verdict on every row. What `aiaas audit replay` does."""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from services.audit.replay import page, rows, verdicts
from services.audit.replay.answers import recorded_outputs, replayed_outputs
from services.audit.replay.asking import again
from services.audit.replay.configurations import Configurations
from services.audit.replay.differences import differences
from services.audit.replay.reading import NotRun, batches
from services.audit.replay.summary import Summary
from shared.errors import AiaasError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from services.audit.records import RecordedOutcome, Selection
    from services.audit.replay.batches import Batch
    from services.audit.replay.runs import Runs
    from services.audit.replay.verdicts import Verdict
    from services.audit.source import Source
    from shared.artifacts import ArtifactStore
    from shared.replay_events import ReplayedRow, ReplayRan, ReplayRequested

    Tell = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Asked:
    """What an auditor wants replayed, and how."""

    selection: Selection
    tolerance: float = 0.0
    digest_check: bool = True
    out: Path | None = None
    """Where rows, page and summary go."""


@dataclass
class _Findings:
    """Takes verdicts as they come."""

    summary: Summary = field(default_factory=Summary)
    shown: list[Verdict] = field(default_factory=list)
    """Those that are not identical, as many as the page shows."""
    write: Callable[[Verdict], None] = lambda _: None

    def add(self, verdict: Verdict) -> None:
        self.summary.add(verdict)
        if verdict.verdict != "identical" and len(self.shown) < page.MOST_SHOWN:
            self.shown.append(verdict)
        self.write(verdict)


async def replay(
    source: Source, runs: Runs, store: ArtifactStore, asked: Asked, tell: Tell = lambda _words, _part: None
) -> Summary:
    """Replay what is selected; writes the report if asked to.

    Raises:
        NoWorker: nothing was ever answered.
        LogUnavailable, RepliesUnavailable, StoreUnavailable: a server did not answer.
        OSError: the report can't be written.
    """
    begun_s, not_run, findings = time.monotonic(), NotRun(), _Findings()
    replay_id = uuid.uuid4().hex
    with ExitStack() as stack:
        if asked.out is not None:
            asked.out.mkdir(parents=True, exist_ok=True)
            findings.write = stack.enter_context(rows.written(asked.out / "rows.parquet"))
        progress = _Progress(asked.selection, tell)
        configurations = await Configurations.read(source.registry())
        read = batches(source, asked.selection, not_run, progress.seen)
        async for batch, ran in runs.of(replay_id, _requests(read, replay_id, configurations, store, asked, findings)):
            async for verdict in _verdicts(batch, ran, store, asked.tolerance):
                findings.add(verdict)
            progress.judged(findings.summary)
    summary = findings.summary
    summary.not_run, summary.seconds = not_run.count, time.monotonic() - begun_s
    if asked.out is not None:
        (asked.out / "report.html").write_text(page.page(_in_words(asked), summary, findings.shown))
        (asked.out / "summary.json").write_bytes(orjson.dumps(summary.as_map(), option=orjson.OPT_INDENT_2))
    return summary


async def _requests(
    read: AsyncIterator[Batch],
    replay_id: str,
    configurations: Configurations,
    store: ArtifactStore,
    asked: Asked,
    findings: _Findings,
) -> AsyncIterator[tuple[Batch, ReplayRequested]]:
    """The batches that can run; of the others the verdict is known."""
    async for batch in read:
        why = batch.problem
        if why is None:
            try:
                request = await again(batch, replay_id, configurations, store, digest_check=asked.digest_check)
            except AiaasError as err:
                why = f"{err.code}: {err.message}"
            else:
                yield batch, request
                continue
        for member in _wanted(batch):
            findings.add(verdicts.not_reproducible(member.receipt, _own_reason(member, why)))


def _own_reason(member: RecordedOutcome, why: str) -> str:
    """What is wrong with the member itself says more than what is wrong with its batch."""
    return f"request_{member.request}" if isinstance(member.request, str) else why


async def _verdicts(
    batch: Batch, ran: ReplayRan | None, store: ArtifactStore, tolerance: float
) -> AsyncIterator[Verdict]:
    if ran is None or ran.status == "failed" or len(ran.rows) != len(batch.members):
        why = "no_answer: no worker answered in three attempts"
        if ran is not None:
            why = f"{ran.error_code}: {ran.error}" if ran.status == "failed" else "internal: rows are missing"
        for member in _wanted(batch):
            yield verdicts.not_reproducible(member.receipt, why)
        return
    for index in sorted(batch.wanted):
        member, row = batch.members[index], ran.rows[index]
        yield await _verdict(member, ran, row, store, tolerance)


async def _verdict(
    member: RecordedOutcome, ran: ReplayRan, row: ReplayedRow, store: ArtifactStore, tolerance: float
) -> Verdict:
    """What differs is looked at only where something does."""
    found = None
    if row.output_sha256 is not None and row.output_sha256 != member.receipt.output_sha256:
        recorded = await recorded_outputs(member, store)
        if recorded is not None:
            found = differences(recorded, await replayed_outputs(row, store))
    return verdicts.of_row(member.receipt, ran, row, found, tolerance)


def _wanted(batch: Batch) -> Iterator[RecordedOutcome]:
    return (batch.members[index] for index in sorted(batch.wanted))


class _Progress:
    """How far the time that was selected has been read, and what came of it."""

    def __init__(self, selection: Selection, tell: Tell) -> None:
        self._since_ms, self._until_ms = selection.since_ms, selection.until_ms
        self._tell = tell
        self._part: float | None = None

    def seen(self, outcome: RecordedOutcome) -> None:
        if self._since_ms is not None and self._until_ms is not None:
            length_ms = max(1, min(self._until_ms, time.time_ns() // 1_000_000) - self._since_ms)
            self._part = min(1.0, (outcome.timestamp_ms - self._since_ms) / length_ms)

    def judged(self, summary: Summary) -> None:
        counts = summary.counts
        words = f"{summary.replayed} replayed, {counts['changed']} changed"
        if counts["not_reproducible"]:
            words += f", {counts['not_reproducible']} not reproducible"
        self._tell(words, self._part)


def _in_words(asked: Asked) -> dict[str, str]:
    selection = asked.selection
    said = {
        "model": selection.model,
        "from (ms)": selection.since_ms,
        "to (ms)": selection.until_ms,
        "requests": ", ".join(sorted(selection.request_ids)[:20]) if selection.request_ids else None,
        "offsets": ", ".join(f"{o.topic}/{o.partition}:{o.first}-{o.next}" for o in selection.offsets or ()) or None,
        "tenant": selection.tenant,
        "tolerance": asked.tolerance,
        "digest check": "on" if asked.digest_check else "off",
    }
    return {key: str(value) for key, value in said.items() if value is not None}
