"""Where request partitions end, as far as the fold has to know it.

An outcome of a request at or beyond the end of its partition is forged or damaged. Ends only grow, so a known end is
good enough for every offset below it, and is asked for again only when an outcome lies at or above it. A partition
that does not exist has no end. Which partitions exist is asked before where they end, because aiokafka waits a long
time for a topic that is not there, and anyone who forges an outcome may name one. Where a broker does not know its
ends exactly, every partition that exists is taken to be endless: better a forged outcome than all real ones refused.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import AIOKafkaConsumer
    from aiokafka.admin import AIOKafkaAdminClient

    from shared.outcome_events import Receipt

Partition = tuple[str, int]


class RequestEnds:
    """End offsets by request `(topic, partition)`, in `known`."""

    def __init__(
        self, consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient, prefix: str, *, exact: bool = True
    ) -> None:
        self._consumer = consumer
        self._admin = admin
        self._prefix = prefix
        self._exact = exact
        self.known: dict[Partition, int] = {}

    async def cover(self, receipts: Iterable[Receipt]) -> None:
        """Ask again for the ends that do not lie above these receipts.

        Raises:
            KafkaError: Kafka did not tell.
        """
        asked = {
            (receipt.request.topic, receipt.request.partition)
            for receipt in receipts
            if receipt.request.offset >= self.known.get((receipt.request.topic, receipt.request.partition), 0)
        }
        await self._look_up({at for at in asked if at[0].startswith(self._prefix)})

    async def _look_up(self, asked: set[Partition]) -> None:
        existing = {at for at in asked if at in self.known}
        if asked - existing:
            existing = asked & await self._existing()
        if not self._exact:
            self.known.update(dict.fromkeys(existing, sys.maxsize))
            return
        ends = await self._consumer.end_offsets([TopicPartition(*at) for at in existing]) if existing else {}
        self.known.update({(at.topic, at.partition): end for at, end in ends.items()})

    async def _existing(self) -> set[Partition]:
        topics = await self._admin.describe_topics()
        return {
            (topic["topic"], partition["partition"])
            for topic in topics
            if topic["topic"].startswith(self._prefix)
            for partition in topic["partitions"]
        }
