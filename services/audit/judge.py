"""Which records of the outcome log count: the public rule of `shared.outcomes`, with a verdict for each record.

A record that is no receipt, or of a request that is not there, must not raise a watermark. Whether a request is there
is a fact of the moment in which its outcome is read; so who writes verdicts down keeps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from shared.errors import InvalidInput
from shared.outcomes import Watermarks, is_forged, read_outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiokafka import ConsumerRecord

    from shared.events import Receipt
    from shared.request_ends import RequestEnds
    from shared.topics import Topics

Verdict = Literal["accepted", "repeat", "malformed", "forged"]


class Judge:
    """Judges records of outcome partitions, each partition's in log order. `marks` is all its state."""

    def __init__(self, topics: Topics, ends: RequestEnds, marks: Watermarks | None = None) -> None:
        self._topics = topics
        self._ends = ends
        self.marks = marks or Watermarks()

    async def judge(self, records: Sequence[ConsumerRecord]) -> list[tuple[Verdict, Receipt | None]]:
        """A verdict for each record; the receipt, unless it is malformed.

        Raises:
            KafkaError: Kafka did not tell where request partitions end.
        """
        receipts = [read(record.key, record.value, self._topics) for record in records]
        await self._ends.cover(receipt for receipt in receipts if receipt is not None)
        return [(decide(receipt, self.marks, self._ends.known), receipt) for receipt in receipts]


def read(key: bytes | None, value: bytes | None, topics: Topics) -> Receipt | None:
    """A record as a receipt, None if it is none."""
    try:
        receipt = read_outcome(key, value)
    except InvalidInput:
        return None
    return receipt if receipt.model_name == topics.model_of(receipt.request.topic) else None


def decide(receipt: Receipt | None, marks: Watermarks, ends: Mapping[tuple[str, int], int] | None) -> Verdict:
    """The verdict on a record, which raises the watermark if it counts. `ends` None: those are not known."""
    if receipt is None:
        return "malformed"
    if ends is not None and is_forged(receipt, ends):
        return "forged"
    return "accepted" if marks.accept(receipt) else "repeat"
