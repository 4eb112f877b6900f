"""Which batches are at workers, and which of them have to be asked for again. Pure: time is passed in.

A worker takes batches at most once, so one that dies loses those it had taken. That shows when a batch is answered that
was sent to the same partition after it, since a partition has one reader at a time and is read in order; else by time.
A batch that was only slow, and is asked for again, is answered twice, of which the first counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shared.replay_events import ReplayRequested

K = TypeVar("K")
ATTEMPTS: Final = 3
OVERTAKEN_S: Final = 2.0
SILENT_S: Final = 30.0
"""And twice as long with each attempt."""


@dataclass(slots=True)
class Sent(Generic[K]):
    """A batch at a worker."""

    key: K
    asked: ReplayRequested
    size_bytes: int
    partition: int
    number: int
    at_s: float


class Outstanding(Generic[K]):
    """At most `most` batches, and about `most_bytes` of values."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._sent: dict[str, Sent[K]] = {}
        self._bytes = 0
        self._number = 0
        self._answered: dict[int, tuple[int, float]] = {}
        """By partition: the latest batch that was answered, and when."""

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        """Whether another may be sent."""
        return len(self._sent) < self._most and (not self._sent or self._bytes < self._most_bytes)

    def sent(self, key: K, asked: ReplayRequested, partition: int, now_s: float) -> None:
        """A batch was sent, or sent again."""
        size_bytes = sum(len(member.value) for member in asked.members)
        before = self._sent.get(asked.batch_id)
        self._bytes += size_bytes - (before.size_bytes if before else 0)
        self._number += 1
        self._sent[asked.batch_id] = Sent(key, asked, size_bytes, partition, self._number, now_s)

    def answered(self, batch_id: str, now_s: float) -> Sent[K] | None:
        """The batch that was answered; None if it had been before."""
        sent = self._sent.pop(batch_id, None)
        if sent is not None:
            self._bytes -= sent.size_bytes
            number, _ = self._answered.get(sent.partition, (0, 0.0))
            if sent.number > number:
                self._answered[sent.partition] = sent.number, now_s
        return sent

    def lost(self, now_s: float) -> Iterator[Sent[K]]:
        """The batches whose answers will hardly come any more."""
        for sent in list(self._sent.values()):
            number, at_s = self._answered.get(sent.partition, (0, 0.0))
            overtaken = number > sent.number and now_s - at_s > OVERTAKEN_S
            if overtaken or now_s - sent.at_s > SILENT_S * 2 ** (sent.asked.attempt - 1):
                yield sent

    def give_up(self, sent: Sent[K]) -> None:
        """Wait for it no more."""
        self._bytes -= self._sent.pop(sent.asked.batch_id).size_bytes
