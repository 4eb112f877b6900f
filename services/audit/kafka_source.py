"""What Kafka and Redis still have, as a `services.audit.source.Source`.

The outcome log is read from the earliest record that is retained, since which outcome counts is decided by those before
it; what is not selected costs a decoded receipt. It is read up to where it ended when the iteration began.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from services.audit.judge import Judge
from services.audit.records import RecordedOutcome
from services.audit.request_reader import RequestReader, gather_by
from services.audit.results import results_of
from services.audit.source import merged
from shared import kafka, registry_log, replies, topics
from shared.errors import LogUnavailable
from shared.outcomes import Watermarks
from shared.request_ends import RequestEnds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aiokafka import AIOKafkaConsumer, ConsumerRecord

    from services.audit.records import Selection
    from shared.outcome_events import Receipt
    from shared.registry import Entry
    from shared.replies import Replies
    from shared.settings import PlatformSettings

_PORTION: Final = 500
_TOGETHER: Final = 16
"""Outcomes whose requests and results are held at a time: each may have 1 MB and 768 KiB."""
_POLL_MS: Final = 500
_STALLED_S: Final = 20.0


class Start(NamedTuple):
    """Where reading a partition of the outcome log begins, and the watermarks of all that was before."""

    offset: int
    marks: Watermarks


class KafkaSource:
    """Build it with `open_source`. One iteration at a time: its clients are shared."""

    def __init__(self, settings: PlatformSettings, clients: Clients) -> None:
        self._settings = settings
        self._clients = clients
        self._topic = settings.topics.name(topics.OUTCOMES)

    async def outcomes(self, selection: Selection) -> AsyncIterator[RecordedOutcome]:
        """See `Source.outcomes`."""
        streams = await self.streams(selection, {})
        async for outcome in merged(list(streams.values()), lambda outcome: outcome.timestamp_ms):
            yield outcome

    async def streams(
        self, selection: Selection, starts: Mapping[TopicPartition, Start]
    ) -> dict[TopicPartition, AsyncIterator[RecordedOutcome]]:
        """What is selected of each partition, in log order; from its start, or else from the earliest record.

        Raises:
            LogUnavailable: Kafka did not answer; iterating, also what `Source.outcomes` raises.
        """
        consumer = self._clients.outcomes
        partitions = await log_partitions(self._clients.admin, self._topic)
        if not partitions:
            return {}
        ends = await kafka_offsets(consumer, partitions, "end")
        begins = await kafka_offsets(consumer, partitions, "beginning")
        consumer.assign(partitions)
        consumer.pause(*partitions)
        streams = {}
        for at in partitions:
            start = starts.get(at, Start(0, Watermarks()))
            first = max(begins[at], start.offset)
            consumer.seek(at, first)
            portions = log_portions(consumer, at, first, ends[at])
            streams[at] = self._selected(portions, selection, start.marks)
        return streams

    async def registry(self) -> AsyncIterator[Entry]:
        """See `Source.registry`."""
        at = TopicPartition(self._settings.topics.name(topics.MODELS), 0)
        if not await log_partitions(self._clients.admin, at.topic):
            return
        async with kafka.started(lambda: kafka.consumer(self._settings), "registry log") as consumer:
            ends = await kafka_offsets(consumer, [at], "end")
            consumer.assign([at])
            consumer.seek(at, 0)
            async for portion in log_portions(consumer, at, 0, ends[at]):
                for record in portion:
                    yield registry_log.entry(record)

    async def _selected(
        self, portions: AsyncIterator[list[ConsumerRecord]], selection: Selection, marks: Watermarks
    ) -> AsyncIterator[RecordedOutcome]:
        judge = Judge(self._settings.topics, self._clients.ends, marks)
        async for portion in portions:
            verdicts = await judge.judge(portion)
            wanted = [
                (record, receipt)
                for record, (verdict, receipt, _) in zip(portion, verdicts, strict=True)
                if verdict == "accepted" and receipt is not None and selection.wants(receipt, record.timestamp)
            ]
            for start in range(0, len(wanted), _TOGETHER):
                for outcome in await self._recorded(wanted[start : start + _TOGETHER]):
                    yield outcome

    async def _recorded(self, outcomes: Sequence[tuple[ConsumerRecord, Receipt]]) -> list[RecordedOutcome]:
        places = [(r.request.topic, r.request.partition, r.request.offset) for _, r in outcomes]
        requests = await gather_by(self._clients.requests, places)
        results = await results_of(self._clients.replies, [receipt for _, receipt in outcomes])
        return [
            RecordedOutcome(
                log=f"{self._clients.cluster_id}/{self._topic}",
                partition=record.partition,
                offset=record.offset,
                timestamp_ms=record.timestamp,
                key=record.key or b"",
                value=record.value or b"",
                receipt=receipt,
                request=requests.get(place, "expired"),
                result=result,
            )
            for (record, receipt), place, result in zip(outcomes, places, results, strict=True)
        ]


class Clients:
    """What it takes to read outcomes, requests and results; see `clients`."""

    def __init__(
        self,
        outcomes: AIOKafkaConsumer,
        requests: RequestReader,
        ends: RequestEnds,
        admin: AIOKafkaAdminClient,
        replies: Replies,
        cluster_id: str | None,
    ) -> None:
        self.outcomes = outcomes
        self.requests = requests
        self.ends = ends
        self.admin = admin
        self.replies = replies
        self.cluster_id = cluster_id


@asynccontextmanager
async def clients(settings: PlatformSettings, *, fetch_min_bytes: int = 1) -> AsyncIterator[Clients]:
    """Clients that reached Kafka. Each waits for its own fetches only."""
    async with AsyncExitStack() as stack:

        async def consumer(what: str, least: int = 1) -> AIOKafkaConsumer:
            make = lambda: kafka.consumer(settings, fetch_min_bytes=least)  # noqa: E731 - one expression, used here
            return await stack.enter_async_context(kafka.started(make, what))

        admin = await stack.enter_async_context(
            kafka.started(lambda: AIOKafkaAdminClient(**kafka.client_options(settings)), "topics")
        )
        cluster_id = (await admin.describe_cluster()).get("cluster_id")
        prefix = settings.topics.name(topics.REQUESTS)
        ends = RequestEnds(await consumer("request ends"), admin, prefix, exact=settings.kafka_exact_ends)
        reader = RequestReader(await consumer("requests"), cluster_id)
        redis = await stack.enter_async_context(replies.connect(settings))
        yield Clients(await consumer("outcomes", fetch_min_bytes), reader, ends, admin, redis, cluster_id)


@asynccontextmanager
async def reached(settings: PlatformSettings, within_s: float = 20.0) -> AsyncIterator[Clients]:
    """The clients, for a command: it does not wait for ever.

    Raises:
        LogUnavailable: Kafka was not reached in time.
    """
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(within_s):
                found = await stack.enter_async_context(clients(settings))
        except TimeoutError as err:
            raise LogUnavailable(f"Kafka at {settings.kafka_bootstrap_servers} does not answer") from err
        yield found


@asynccontextmanager
async def open_source(settings: PlatformSettings) -> AsyncIterator[KafkaSource]:
    """The source, for as long as it is needed.

    Raises:
        LogUnavailable: Kafka was not reached in time.
    """
    async with reached(settings) as found:
        yield KafkaSource(settings, found)


async def log_partitions(admin: AIOKafkaAdminClient, topic: str) -> list[TopicPartition]:
    """The partitions of a topic; none if it does not exist.

    Raises:
        LogUnavailable: Kafka did not tell.
    """
    try:
        described = await admin.describe_topics([topic])
    except KafkaError as err:
        raise LogUnavailable(f"Kafka did not describe {topic}: {err!r}") from err
    ids = sorted(partition["partition"] for found in described for partition in found["partitions"])
    return [TopicPartition(topic, number) for number in ids]


async def kafka_offsets(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition], which: str
) -> dict[TopicPartition, int]:
    """The `beginning` or `end` offsets of partitions.

    Raises:
        LogUnavailable: Kafka did not tell.
    """
    if not partitions:
        return {}
    ask = consumer.end_offsets if which == "end" else consumer.beginning_offsets
    try:
        offsets: dict[TopicPartition, int] = await ask(list(partitions))
    except KafkaError as err:
        raise LogUnavailable(f"Kafka did not tell the {which} of {partitions[0].topic}: {err!r}") from err
    return offsets


async def log_portions(
    consumer: AIOKafkaConsumer, at: TopicPartition, position: int, end: int
) -> AsyncIterator[list[ConsumerRecord]]:
    """The records of an assigned partition from where its consumer stands up to `end`, in portions.

    Others of the consumer's partitions may be read in turns with it: it fetches only while it is asked.

    Raises:
        LogUnavailable: nothing came for a long time.
    """
    stalled_s = time.monotonic() + _STALLED_S
    while position < end:
        consumer.resume(at)
        try:
            fetched = await consumer.getmany(at, timeout_ms=_POLL_MS, max_records=_PORTION)
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not give {at.topic}/{at.partition}: {err!r}") from err
        finally:
            consumer.pause(at)
        if records := [record for record in fetched.get(at, ()) if record.offset < end]:
            yield records
        before, position = position, await consumer.position(at)
        if position > before:
            stalled_s = time.monotonic() + _STALLED_S
        elif time.monotonic() > stalled_s:
            raise LogUnavailable(f"Kafka gives nothing of {at.topic}/{at.partition} from offset {position}")
