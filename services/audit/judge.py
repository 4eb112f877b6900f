"""Which records of the outcome log count: the public rule of `shared.outcomes`, with a verdict for each record.

A record that is no receipt, or of a request that is not there, must not raise a watermark. Whether a request is there
is a fact of the moment in which its outcome is read; so who writes verdicts down keeps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from shared.errors import InvalidInput
from shared.outcomes import Watermarks, is_forged, read_outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiokafka import ConsumerRecord

    from shared.outcome_events import Receipt
    from shared.request_ends import RequestEnds
    from shared.topics import Topics

Verdict = Literal["accepted", "repeat", "malformed", "forged"]


class Judged(NamedTuple):
    """What became of a record of the outcome log."""

    verdict: Verdict
    receipt: Receipt | None
    """None if it is malformed."""
    above: int | None
    """The highest request offset of its partition that was accepted before; None if none was."""


class Judge:
    """Judges records of outcome partitions, each partition's in log order. `marks` is all its state."""

    def __init__(self, topics: Topics, ends: RequestEnds, marks: Watermarks | None = None) -> None:
        self._topics = topics
        self._ends = ends
        self.marks = marks or Watermarks()

    async def judge(self, records: Sequence[ConsumerRecord]) -> list[Judged]:
        """A verdict for each record. Nothing is changed if it raises.

        Raises:
            KafkaError: Kafka did not tell where request partitions end.
        """
        receipts = [read(record.key, record.value, self._topics) for record in records]
        await self._ends.cover(receipt for receipt in receipts if receipt is not None)
        return [judged(receipt, self.marks, self._ends.known) for receipt in receipts]


def judged(receipt: Receipt | None, marks: Watermarks, ends: Mapping[tuple[str, int], int] | None) -> Judged:
    """The verdict on a record; raises the watermark if it counts. `ends` None: nobody knows them any more."""
    if receipt is None:
        return Judged("malformed", None, None)
    above = marks.highest.get((receipt.request.topic, receipt.request.partition))
    if ends is not None and is_forged(receipt, ends):
        return Judged("forged", receipt, above)
    return Judged("accepted" if marks.accept(receipt) else "repeat", receipt, above)


def read(key: bytes | None, value: bytes | None, topics: Topics) -> Receipt | None:
    """A record as a receipt, None if it is none."""
    try:
        receipt = read_outcome(key, value)
    except InvalidInput:
        return None
    return receipt if receipt.model_name == topics.model_of(receipt.request.topic) else None
