"""Two versions on the same recorded requests: what `aiaas audit backtest` does, and the gate of a promotion.

Both get the requests of each recorded batch, together as far as each may run them; the recorded answers play no part,
so one machine and one moment see both. The candidate is refused if it fails on requests that the other answers, or
loses more than the model's policy allows.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from services.audit.replay.answers import replayed_outputs
from services.audit.replay.asking import on_another
from services.audit.replay.comparing import Compared, Latencies, Pair, compare
from services.audit.replay.reading import NotRun, batches
from services.audit.replay.runs import NoWorker
from shared import processed_signature
from shared.errors import AiaasError, UnknownRequest
from shared.optimization import Policy
from shared.quality import policy as quality
from shared.signature import Signature

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from services.audit.records import RecordedOutcome, Selection
    from services.audit.replay.contenders import Contender
    from services.audit.replay.runs import Runs
    from services.audit.source import Source
    from shared.artifacts import ArtifactStore
    from shared.events import FeedbackGiven
    from shared.quality.estimates import Comparison, Estimate
    from shared.replay_events import ReplayedRow, ReplayRan, ReplayRequested

    Tell = Callable[[str, float | None], None]
    Truth = Callable[[AbstractSet[str]], Any]

DEFAULT: Final = Policy(max_loss=0.01, min_cosine=0.999, proof="estimate")
"""What a candidate must meet where the model's policy leaves it open: as the optimizer is set out of the box."""
MOST_BYTES: Final = 1024**3
"""Of outputs that are compared; then no more requests are taken."""
Side = Literal["against", "candidate"]
_SIDES: Final[tuple[Side, ...]] = ("against", "candidate")


@dataclass(frozen=True)
class Match:
    """What is compared, on what, and what is allowed."""

    candidate: Contender
    against: Contender
    selection: Selection
    policy: Policy = DEFAULT
    most_requests: int = 20_000


@dataclass
class Outcome:
    """What a back-test found."""

    match: Match
    requests: int
    failed: Counter[Side]
    """Requests that one could not answer, and the other could."""
    why_failed: str
    compared: Compared
    latencies: dict[Side, Latencies]
    unread: Counter[str]
    """Requests that could not be taken, and why."""
    seconds: float

    @property
    def problem(self) -> str | None:
        """Why the candidate is refused, None if it passes."""
        if self.failed["candidate"]:
            return f"it fails on {self.failed['candidate']} of {self.requests} requests: {self.why_failed}"
        if self.compared.problems:
            return self.compared.problems[0]
        policy = self.match.policy
        return quality.problem(
            self.compared.comparisons,
            quality.Policy(
                allowed_loss=policy.max_loss or 0.0,
                allowed_drift=1.0 - (policy.min_cosine or 0.0),
                proof=policy.proof or "estimate",
            ),
        )

    def as_map(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "candidate": str(self.match.candidate),
            "against": str(self.match.against),
            "passed": self.problem is None,
            "reason": self.problem or "it loses no more than the policy allows",
            "allowed_loss": self.match.policy.max_loss,
            "requests": self.requests,
            "rows": self.compared.rows,
            "feedback_rows": self.compared.labelled_rows,
            "failed": {side: self.failed[side] for side in _SIDES},
            "agreement": self.compared.agreement,
            "metrics": [_comparison(each) for each in self.compared.comparisons],
            "latency": {side: self.latencies[side].as_map() for side in _SIDES},
            "unread": dict(self.unread),
            "seconds": round(self.seconds, 3),
        }


@dataclass
class _Taking:
    """Answers of both sides, put together by request."""

    pairs: list[Pair] = field(default_factory=list)
    half: dict[str, ReplayRan] = field(default_factory=dict)
    requests: int = 0
    byte_size: int = 0
    failed: Counter[Side] = field(default_factory=Counter)
    why_failed: str = ""
    latencies: dict[Side, Latencies] = field(default_factory=lambda: {side: Latencies() for side in _SIDES})
    unread: Counter[str] = field(default_factory=Counter)


async def backtest(
    source: Source,
    runs: Runs,
    store: ArtifactStore,
    match: Match,
    truth_of: Truth,
    tell: Tell = lambda _words, _part: None,
) -> Outcome:
    """Run what is selected on both; `truth_of` gives what `feedback` says of request ids.

    Raises:
        UnknownRequest: nothing that is selected can be run.
        NoWorker: nothing was ever answered.
        LogUnavailable, RepliesUnavailable, StoreUnavailable: a server did not answer.
    """
    begun_s, taking = time.monotonic(), _Taking()
    replay_id = uuid.uuid4().hex
    async for (members, side), ran in runs.of(replay_id, _requests(source, replay_id, store, match, taking)):
        if ran is None:
            raise NoWorker("a batch was not answered in three attempts")
        await _take(members, side, ran, store, taking)
        tell(f"{taking.requests} requests compared", min(1.0, taking.requests / match.most_requests))
    if not taking.requests:
        raise UnknownRequest(f"no recorded request of {match.against.model!r} in this range can be run again")
    truth: Mapping[str, FeedbackGiven] = await truth_of({pair.request_id for pair in taking.pairs})
    found = compare(taking.pairs, _signature(match), truth)
    return Outcome(
        match=match,
        requests=taking.requests,
        failed=taking.failed,
        why_failed=taking.why_failed,
        compared=found,
        latencies=taking.latencies,
        unread=taking.unread,
        seconds=time.monotonic() - begun_s,
    )


Key = tuple[tuple["RecordedOutcome", ...], Side]


async def _requests(
    source: Source, replay_id: str, store: ArtifactStore, match: Match, taking: _Taking
) -> AsyncIterator[tuple[Key, ReplayRequested]]:
    taken = 0
    async for batch in batches(source, match.selection, NotRun()):
        members = tuple(batch.members[index] for index in sorted(batch.wanted))
        there = tuple(each for each in members if not isinstance(each.request, str))
        taking.unread.update(f"request_{each.request}" for each in members if isinstance(each.request, str))
        if not there:
            continue
        for side, contender in zip(_SIDES, (match.against, match.candidate), strict=True):
            try:
                request = await on_another(there, f"{side}-{batch.id}"[:200], replay_id, contender, store)
            except AiaasError as err:
                taking.unread[err.code] += len(there)
                break
            yield (there, side), request
        taken += len(there)
        if taken >= match.most_requests or taking.byte_size > MOST_BYTES:
            return


async def _take(
    members: Sequence[RecordedOutcome], side: Side, ran: ReplayRan, store: ArtifactStore, taking: _Taking
) -> None:
    """One side's answers to a batch; compared once those of the other are there."""
    name = ran.batch_id.partition("-")[2]
    other = taking.half.pop(name, None)
    if other is None:
        taking.half[name] = ran
        return
    opposite: Side = "candidate" if side == "against" else "against"
    sides: dict[Side, ReplayRan] = {side: ran, opposite: other}
    for index, member in enumerate(members):
        rows: dict[Side, ReplayedRow | None] = {
            each: sides[each].rows[index] if sides[each].status == "ran" else None for each in _SIDES
        }
        await _take_row(member, rows, sides, store, taking)


async def _take_row(
    member: RecordedOutcome,
    rows: Mapping[Side, ReplayedRow | None],
    sides: Mapping[Side, ReplayRan],
    store: ArtifactStore,
    taking: _Taking,
) -> None:
    answered = {side: row for side, row in rows.items() if row is not None and row.output_sha256 is not None}
    taking.requests += 1
    if len(answered) < len(_SIDES):
        for side in _SIDES:
            if side not in answered and answered:
                row = rows[side]
                taking.failed[side] += 1
                if side == "candidate":
                    taking.why_failed = sides[side].error if row is None else row.error
        if not answered:
            taking.unread["fails on both"] += 1
        return
    for side, row in answered.items():
        taking.latencies[side].infer_ns.append(row.infer_ns or 0)
    pair = Pair(
        member.receipt.request_id,
        await replayed_outputs(answered["against"], store),
        await replayed_outputs(answered["candidate"], store),
    )
    taking.byte_size += sum(len(tensor.data) for tensor in (*pair.against, *pair.candidate))
    taking.pairs.append(pair)


def _signature(match: Match) -> Signature:
    """What `against` answers with: the model's own outputs, and those of its steps."""
    variant = match.against.variant
    if variant.processing is None:
        return variant.signature
    return Signature(
        inputs=variant.signature.inputs, outputs=processed_signature.all_outputs(variant.processing, variant.signature)
    )


def _comparison(each: Comparison) -> dict[str, Any]:
    return {
        "output": each.output,
        "metric": each.metric,
        "rows": each.rows,
        "gates": each.gates,
        "candidate": _estimate(each.candidate),
        "against": _estimate(each.reference),
        "loss": _estimate(each.loss),
    }


def _estimate(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}
