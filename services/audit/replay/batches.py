"""Recorded outcomes put together to the batches that they ran in. Pure.

Members of a batch may lie in several partitions, but are appended within moments of each other: a batch that has not
been completed when outcomes of `SETTLED_MS` later have come is given out as it is. So memory is bounded by what was
appended within that time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.audit.records import RecordedOutcome

SETTLED_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Batch:
    """A recorded batch: its members in their order, as far as they were found."""

    id: str
    members: tuple[RecordedOutcome, ...]
    wanted: frozenset[int]
    """The places in `members` of those that a verdict is wanted on; the others are their neighbours."""

    @property
    def problem(self) -> str | None:
        """Why it can't run as it did, None if it can."""
        size, digest = _said(self.members[0])
        if len(self.members) < size:
            return f"batch_incomplete: {len(self.members)} of {size} members were found"
        for member in self.members:
            if isinstance(member.request, str):
                whose = "" if len(self.members) == 1 else f" (request {member.receipt.request_id})"
                return f"request_{member.request}{whose}"
        if members_digest(self.members) != digest:
            return "members_mismatch: the members' receipts are not those of the recorded batch"
        return None


def members_digest(members: tuple[RecordedOutcome, ...]) -> str:
    """Over coordinates and input digests in order, as `members_sha256` of receipts."""
    lines = (f"{m.at[0]}-{m.at[1]}-{m.at[2]} {m.receipt.input_sha256}\n" for m in members)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(slots=True)
class _Open:
    since_ms: int
    members: dict[int, RecordedOutcome] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)


class Assembler:
    """Takes outcomes in the order in which they were appended; gives out batches with a wanted member."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def add(self, outcome: RecordedOutcome, *, wanted: bool) -> Iterator[Batch]:
        """One more outcome that ran; the batches that are ready now."""
        membership = outcome.receipt.batch
        if membership is None:
            raise AssertionError("an outcome of what did not run is in no batch")
        found = self._open.setdefault(membership.id, _Open(outcome.timestamp_ms))
        found.members[membership.index] = outcome
        if wanted:
            found.wanted.add(membership.index)
        if len(found.members) >= membership.size:
            yield from self._close(membership.id)
        while self._open:
            batch_id, oldest = next(iter(self._open.items()))
            if oldest.since_ms + SETTLED_MS > outcome.timestamp_ms:
                break
            yield from self._close(batch_id)

    def rest(self) -> Iterator[Batch]:
        """What is left when no more will come."""
        for batch_id in list(self._open):
            yield from self._close(batch_id)

    def _close(self, batch_id: str) -> Iterator[Batch]:
        found = self._open.pop(batch_id)
        if found.wanted:
            places = sorted(found.members)
            wanted = frozenset(at for at, index in enumerate(places) if index in found.wanted)
            yield Batch(batch_id, tuple(found.members[index] for index in places), wanted)


def _said(member: RecordedOutcome) -> tuple[int, str]:
    """Size and digest of the batch, by one of its members."""
    membership = member.receipt.batch
    return (1, "") if membership is None else (membership.size, membership.members_sha256)
