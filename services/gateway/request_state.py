"""Where a request is: queued (and behind how many), running, or ended. Pure.

Three sources, each with its own age. Redis has the answer, if there is one, and which records are in a run right now;
the heartbeats of live workers say from which record on each partition is not answered yet. So `queue_position` is as
of the last heartbeat (seconds), and counts offsets: markers of transactions and records that were answered out of
order count as if they were waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from shared.heartbeat_events import Heartbeat
    from shared.outcome_events import Status
    from shared.replies import Claim
    from shared.results import Result

    State = Literal["queued", "running"] | Status


@dataclass(frozen=True, slots=True)
class RequestState:
    """What a caller is told. `queue_position` is how many are before it: 0 is next, None if nobody tells."""

    state: State
    queue_position: int | None = None
    result: Result | None = None

    @property
    def ended(self) -> bool:
        """Whether this is the last state: it has its answer."""
        return self.result is not None


def state_of(
    claim: Claim, running: Collection[tuple[str, int]], result: Result | None, alive: Iterable[Heartbeat]
) -> RequestState:
    """The state of the request that owns `claim`.

    `running` are the records in a run, as (`topic/partition`, offset). Read it before `result`: a worker takes a record
    out of its run when it stores the answer, so read the other way round a request could fall back to queued.
    """
    if result is not None:
        return RequestState(result.status, result=result)
    if (claim.where, claim.offset) in running:
        return RequestState("running")
    return RequestState("queued", queue_position=position_of(claim, alive))


def position_of(claim: Claim, alive: Iterable[Heartbeat]) -> int | None:
    """How many records of the claim's partition are before it, None if no live worker holds that partition.

    While a partition moves, two workers may tell of it: the one that is further has it, since answers only move on.
    """
    told = [beat.positions[claim.where] for beat in alive if claim.where in beat.positions]
    return max(0, claim.offset - max(told)) if told else None
