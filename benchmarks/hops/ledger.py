"""The outcome log as a reader sees it: the watermark rule, and what it proves about one run.

Accept an outcome iff its request offset is above the highest accepted for its request partition. The rule is exact only
if the first outcome of offset k never comes before the first outcome of k - 1: that is what `gaps` counts.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgpack
from aiokafka import TopicPartition

from benchmarks.hops import kit
from benchmarks.hops.members import Stage


@dataclass(frozen=True, slots=True)
class Outcome:
    """One record of the log."""

    seen_ms: float
    partition: int
    offset: int
    worker: str
    digest: str


@dataclass(slots=True)
class Ledger:
    """The fold of the log, in log order per request partition."""

    accepted: list[Outcome] = field(default_factory=list)
    owners: dict[int, str] = field(default_factory=dict)
    high: dict[int, int] = field(default_factory=dict)
    digests: dict[tuple[int, int], str] = field(default_factory=dict)
    repeats: int = 0
    gaps: int = 0
    disagreements: int = 0

    def add(self, outcome: Outcome) -> None:
        """Apply the watermark rule to one outcome."""
        self.owners[outcome.partition] = outcome.worker
        high = self.high.get(outcome.partition, -1)
        first = self.digests.setdefault((outcome.partition, outcome.offset), outcome.digest)
        self.disagreements += first != outcome.digest
        if outcome.offset <= high:
            self.repeats += 1
            return
        self.gaps += outcome.offset - high - 1
        self.high[outcome.partition] = outcome.offset
        self.accepted.append(outcome)

    def first_after(self, moment_ms: float, partitions: Iterable[int]) -> float | None:
        """Seconds from `moment_ms` until the last of `partitions` had a new accepted outcome again."""
        firsts = [
            next((o.seen_ms for o in self.accepted if o.partition == p and o.seen_ms > moment_ms), None)
            for p in partitions
        ]
        known = [ms for ms in firsts if ms is not None]
        return (max(known) - moment_ms) / 1000 if known and len(known) == len(firsts) else None


async def follow(stage: Stage, ledger: Ledger) -> None:
    """Fold the outcome topic into `ledger` until cancelled."""
    async with kit.reader(stage.servers, stage.outcomes) as log:
        while True:
            for records in (await log.getmany(timeout_ms=500)).values():
                for record in records:
                    fields = msgpack.unpackb(record.value)
                    at = fields["request"]
                    outcome = Outcome(
                        kit.now_ms(), at["partition"], at["offset"], fields["worker"], fields["output_sha256"]
                    )
                    ledger.add(outcome)


async def settle(stage: Stage, ledger: Ledger, *, timeout_s: float = 60) -> int:
    """Wait until every request has an accepted outcome; how many requests still have none."""
    async with kit.reader(stage.servers, stage.topic) as requests:
        partitions = [TopicPartition(stage.topic, p) for p in range(4)]
        ends = await requests.end_offsets(partitions)
    deadline = time.monotonic() + timeout_s
    while True:
        missing: int = sum(end - 1 - ledger.high.get(tp.partition, -1) for tp, end in ends.items())
        if not missing or time.monotonic() > deadline:
            return missing
        await asyncio.sleep(0.1)
