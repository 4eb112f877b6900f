"""The outcomes of one request partition, in request order.

A row is opened for every record taken and completed in whatever order answers come. Only the contiguous run of
completed rows at the front may be appended to the outcome log, which is what makes its watermark rule exact (see
`shared.outcomes`). When the partition is lost, or an append failed, the ledger is closed: late answers then go
nowhere, and the next owner of the partition begins at the committed offset.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import deque

import msgspec

from shared.results import Result


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a row is completed with: the encoded receipt, and the reply to copy to a topic if the request wants that."""

    request_id: str
    receipt: bytes
    copy: ReplyCopy | None = None


class ReplyCopy(msgspec.Struct, frozen=True, gc=False):
    """A reply that also goes to `topic`, with the request's key and `x-*` headers."""

    topic: str
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    result: Result


class Ledger:
    """Rows of one request partition since its committed offset."""

    def __init__(self, topic: str, partition: int, committed: int) -> None:
        self.topic = topic
        self.partition = partition
        self.where = f"{topic}/{partition}"
        self.committed = committed
        """Everything below has an acknowledged outcome, and the group knows."""
        self.appended = committed
        """Everything below has an acknowledged outcome."""
        self.taken = committed
        """The offset after the last record taken."""
        self.closed = False
        self._order: deque[int] = deque()
        self._completed: dict[int, Outcome] = {}

    @property
    def open_rows(self) -> int:
        """Rows whose outcome is not appended yet."""
        return len(self._order)

    @property
    def position(self) -> int:
        """The first offset whose outcome is not appended yet."""
        return self._order[0] if self._order else self.taken

    def open(self, offset: int) -> None:
        """A record was taken. Offsets only grow (transactions leave holes in them)."""
        if offset < self.taken:
            raise ValueError(f"offset {offset} was taken before in {self.topic}/{self.partition}")
        self._order.append(offset)
        self.taken = offset + 1

    def complete(self, offset: int, outcome: Outcome) -> None:
        """A record has its outcome. Nothing happens if the ledger is closed."""
        if not self.closed:
            self._completed.setdefault(offset, outcome)

    @property
    def is_ready(self) -> bool:
        """Whether `ready` has any."""
        return bool(self._order) and self._order[0] in self._completed

    def ready(self) -> list[tuple[int, Outcome]]:
        """The contiguous completed rows at the front, by offset; they stay until `advance`."""
        run = []
        for offset in self._order:
            outcome = self._completed.get(offset)
            if outcome is None:
                break
            run.append((offset, outcome))
        return run

    def advance(self, offset: int) -> None:
        """Rows up to and including `offset` have been appended."""
        while self._order and self._order[0] <= offset:
            self._completed.pop(self._order.popleft(), None)
        self.appended = offset + 1

    def close(self) -> None:
        """Let go of everything."""
        self.closed = True
        self._order.clear()
        self._completed.clear()
