"""Reading the outcome log into the fold: every partition, by explicit offsets, nothing committed to Kafka.

For each portion fetched: decode, learn where the request partitions end, send what is no outcome to the dead letters,
and then fold the whole portion in one step between two awaits. So a snapshot never sees half a portion, and a failure
of Kafka before that step only means doing it again; a dead letter may then be there twice.

A record is refused for good: whether an offset was beyond the end is a fact of the moment it was read, and requests
that come later would make it look right. That is why the state is stored at once when an outcome was found forged.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from shared import logs, topics
from shared.errors import InvalidInput, LogUnavailable
from shared.outcome_events import Receipt
from shared.outcomes import is_forged, read_outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiokafka import AIOKafkaConsumer, ConsumerRecord
    from aiokafka.admin import AIOKafkaAdminClient

    from services.monitor.fold import Ignored, OutcomeFold
    from shared.dead_letters import DeadLetters
    from shared.request_ends import RequestEnds
    from shared.settings import PlatformSettings

_PORTION = 500
"""Records folded in one step: some 20 ms in which nothing else runs."""
_RETRY_S = 1.0


@dataclass(frozen=True)
class Log:
    """The outcome log as Kafka describes it; `name` tells it from that of another cluster or prefix."""

    name: str
    partitions: tuple[TopicPartition, ...]


async def describe(settings: PlatformSettings, admin: AIOKafkaAdminClient) -> Log:
    """The outcome log, which exists but may be so new that Kafka does not say so yet."""
    topic = settings.topics.name(topics.OUTCOMES)
    while True:
        try:
            [description] = await admin.describe_topics([topic])
            if description["partitions"]:
                cluster = (await admin.describe_cluster())["cluster_id"]
                ids = sorted(partition["partition"] for partition in description["partitions"])
                return Log(f"{cluster}/{topic}", tuple(TopicPartition(topic, partition) for partition in ids))
        except KafkaError as err:
            logs.get().warning("waiting for kafka", what="outcome log", error=repr(err))
        await asyncio.sleep(_RETRY_S)


class OutcomeLog:
    """Folds the outcome log into `fold`. `open` once, then `run` until cancelled."""

    def __init__(
        self,
        settings: PlatformSettings,
        log: Log,
        consumer: AIOKafkaConsumer,
        ends: RequestEnds,
        dead_letters: DeadLetters,
    ) -> None:
        self._model_of = settings.topics.model_of
        self._partitions = log.partitions
        self._consumer = consumer
        self._ends = ends
        self._dead_letters = dead_letters
        self._behind: dict[TopicPartition, int] = {}

    async def open(self, fold: OutcomeFold) -> bool:
        """Go to where `fold` stands; False if the log ends before that, so that it can't be the one that was folded.

        Raises:
            KafkaError: Kafka did not tell where the log begins and ends.
        """
        self._consumer.assign(self._partitions)
        begins = await self._consumer.beginning_offsets(self._partitions)
        self._behind = await self._consumer.end_offsets(self._partitions)
        starts = {at: fold.offsets.get(at.partition, 0) for at in self._partitions}
        if any(starts[at] > self._behind[at] for at in self._partitions):
            return False
        for at, start in starts.items():
            if fold.offsets and start < begins[at]:
                logs.get().error("outcomes expired unseen", partition=at.partition, first=start, last=begins[at] - 1)
            self._consumer.seek(at, max(start, begins[at]))
        await self._note_position()
        return True

    @property
    def caught_up(self) -> bool:
        """Whether all that was in the log when it was opened is folded."""
        return not self._behind

    def lag(self, fold: OutcomeFold) -> int:
        """Records that are in the log and not in `fold`, as of the last fetch."""
        return sum(
            max((self._consumer.highwater(at) or 0) - fold.offsets.get(at.partition, 0), 0) for at in self._partitions
        )

    async def run(
        self, fold: OutcomeFold, save: Callable[[], Awaitable[bool]], is_full: Callable[[], bool] = lambda: False
    ) -> None:
        """Fold until cancelled. `save` stores the state; when `is_full` says so, nothing is folded before it did."""
        while True:
            records = await self._fetch()
            outcomes = await self._judge(records)
            fold.add(
                [
                    (record.partition, record.offset, outcome, record.timestamp)
                    for record, outcome in zip(records, outcomes, strict=True)
                ]
            )
            if not self.caught_up:
                await self._note_position()
            if "forged" in outcomes:
                await save()
            if is_full():
                await self._stored(save)

    async def _stored(self, save: Callable[[], Awaitable[bool]]) -> None:
        while not await save():  # noqa: ASYNC110 - a disk does not say when it has room again
            await asyncio.sleep(_RETRY_S)

    async def _fetch(self) -> list[ConsumerRecord]:
        try:
            fetched = await self._consumer.getmany(timeout_ms=1000, max_records=_PORTION)
        except KafkaError as err:
            logs.get().warning("waiting for kafka", what="outcomes", error=repr(err))
            await asyncio.sleep(_RETRY_S)
            return []
        return [record for portion in fetched.values() for record in portion]

    async def _judge(self, records: Sequence[ConsumerRecord]) -> list[Receipt | Ignored]:
        read = [self._read(record) for record in records]
        while True:
            try:
                known = self._ends.known
                doubtful = [each for each in read if isinstance(each, Receipt) and is_forged(each, known)]
                if doubtful:
                    await self._ends.cover(doubtful)
                return [
                    outcome
                    if isinstance(outcome, Receipt) and not (doubtful and is_forged(outcome, known))
                    else await self._refused(record, outcome)
                    for record, outcome in zip(records, read, strict=True)
                ]
            except (KafkaError, LogUnavailable) as err:
                logs.get().warning("waiting for kafka", what="outcomes", error=repr(err))
                await asyncio.sleep(_RETRY_S)

    def _read(self, record: ConsumerRecord) -> Receipt | InvalidInput:
        try:
            receipt = read_outcome(record.key, record.value)
        except InvalidInput as err:
            return err
        if receipt.model_name != self._model_of(receipt.request.topic):
            return InvalidInput(f"an outcome of {receipt.request.topic} names another model")
        return receipt

    async def _refused(self, record: ConsumerRecord, outcome: Receipt | InvalidInput) -> Ignored:
        """Why a record is no outcome, which was told the dead letters."""
        verdict: Ignored = "malformed"
        if isinstance(outcome, Receipt):
            verdict = "forged"
            at = outcome.request
            outcome = InvalidInput(f"an outcome of {at.topic}/{at.partition} offset {at.offset}, where no request is")
        logs.get().warning(
            "outcome refused", why=verdict, partition=record.partition, offset=record.offset, error=outcome.message
        )
        await self._dead_letters.publish(record, outcome)
        return verdict

    async def _note_position(self) -> None:
        for at, end in list(self._behind.items()):
            if await self._consumer.position(at) >= end:
                del self._behind[at]
