"""What was recorded of a request: its record, its result, and the one outcome that binds both by digest.

Bytes are those that lay in Kafka and in Redis, never written anew: digests of receipts hold over them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shared.outcome_events import Coordinates, Receipt
    from shared.results import Result

Gone = Literal["expired", "erased", "missing", "changed"]
"""Why there is no request, or no result, to an outcome.

expired: nobody kept it long enough: Kafka's retention, the TTL of Redis, or the archive's own retention.
erased: a person's request was erased on demand (`aiaas audit erase`).
missing: it should be there, and is not.
changed: something else is there than the receipt's digest says (a result: its id was used again after the TTL).
"""
RecordHeaders = tuple[tuple[str, bytes | None], ...]
At = tuple[str, int, int]
"""Topic, partition and offset of a record."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request as it lay in its topic. `shared.requests.from_kafka` reads `headers`, `shared.oip` the value."""

    coordinates: Coordinates
    timestamp_ms: int
    """When it was produced, in ms since the epoch, by its producer's clock."""
    key: bytes | None
    headers: RecordHeaders
    value: bytes | None

    @property
    def input_sha256(self) -> str:
        """The digest that its receipt must have."""
        return hashlib.sha256(self.value or b"").hexdigest()


@dataclass(frozen=True, slots=True)
class RecordedOutcome:
    """An outcome that counts, with what it is about.

    `request` and `result` are the thing or the reason why it is not there. A result's claim-checked outputs are in the
    artifact store (`shared.claims.fetch`), the others in its tensors; its `receipt` is None, since it is here.
    """

    log: str
    """Which outcome log: `cluster/topic`, and from an archive the number of the log's life, `cluster/topic/0`."""
    partition: int
    offset: int
    timestamp_ms: int
    """When it was appended, in ms since the epoch."""
    key: bytes
    value: bytes
    receipt: Receipt
    request: RecordedRequest | Gone
    result: Result | Gone

    @property
    def at(self) -> At:
        """Where its request lay."""
        request = self.receipt.request
        return request.topic, request.partition, request.offset


@dataclass(frozen=True, slots=True)
class Offsets:
    """Requests of one partition, from `first` up to but not including `next`."""

    topic: str
    partition: int
    first: int
    next: int

    def __contains__(self, at: At) -> bool:
        return at[:2] == (self.topic, self.partition) and self.first <= at[2] < self.next


@dataclass(frozen=True, slots=True)
class Selection:
    """Which outcomes are wanted: those for which all that is said here holds. Nothing said: all."""

    model: str | None = None
    since_ms: int | None = None
    """By the time at which the outcome was appended, from this on…"""
    until_ms: int | None = None
    """…and before this."""
    request_ids: frozenset[str] | None = None
    offsets: tuple[Offsets, ...] | None = None
    """Of requests; any of these ranges."""
    tenant: str | None = None

    def wants(self, receipt: Receipt, timestamp_ms: int) -> bool:
        """Whether this outcome, appended at that time, is one of them."""
        request = receipt.request
        at = request.topic, request.partition, request.offset
        return (
            self.model in {None, receipt.model_name}
            and (self.since_ms is None or timestamp_ms >= self.since_ms)
            and (self.until_ms is None or timestamp_ms < self.until_ms)
            and (self.request_ids is None or receipt.request_id in self.request_ids)
            and (self.offsets is None or any(at in offsets for offsets in self.offsets))
            and self.tenant in {None, receipt.tenant}
        )
