"""How far optimizers are: the newest `JobProgressed` of each version, from `metrics`.

Progress is no state: what was told before this gateway started is not looked up, and what a finished version told last
is forgotten with the next thousand.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from shared import kafka, logs, topics
from shared.background import beside
from shared.codec import decode_event
from shared.errors import InvalidInput
from shared.metric_events import JobProgressed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiokafka import AIOKafkaConsumer, ConsumerRecord

    from shared.settings import PlatformSettings

_KEPT: Final = 1000
_POINTS: Final = 64
"""Curves of a version, the newest point of each."""
_RETRY_S: Final = 1.0


class JobProgress:
    """The newest of each version. Build it with `follow`."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], JobProgressed] = {}
        self._points: dict[tuple[str, int], dict[str, tuple[int, float]]] = {}

    def of(self, model: str, version: int) -> JobProgressed | None:
        """What was told last of a version."""
        return self._last.get((model, version))

    def points(self, model: str, version: int) -> dict[str, tuple[int, float]]:
        """The newest point of each of its curves."""
        return self._points.get((model, version), {})

    def take(self, event: JobProgressed) -> None:
        """Take in what an optimizer told."""
        key = (event.model, event.version)
        self._last.pop(key, None)  # the newest last
        self._last[key] = event
        points = self._points.setdefault(key, {})
        points.update(event.points)
        for name in list(points)[:-_POINTS]:
            del points[name]
        if len(self._last) > _KEPT:
            oldest = next(iter(self._last))
            del self._last[oldest]
            del self._points[oldest]


@asynccontextmanager
async def follow(settings: PlatformSettings) -> AsyncIterator[JobProgress]:
    """Follow `metrics` from now on."""
    progress = JobProgress()
    async with kafka.started(lambda: kafka.consumer(settings), "job progress") as consumer:
        partition = TopicPartition(settings.topics.name(topics.METRICS), 0)
        consumer.assign([partition])
        await consumer.seek_to_end(partition)
        async with beside(_read(consumer, progress)):
            yield progress


async def _read(consumer: AIOKafkaConsumer, progress: JobProgress) -> None:
    while True:
        try:
            fetched = await consumer.getmany(timeout_ms=1000)
        except KafkaError as err:
            logs.get().warning("waiting for kafka", what="job progress", error=repr(err))
            await asyncio.sleep(_RETRY_S)
            continue
        for record in (record for records in fetched.values() for record in records):
            _take(record, progress)


def _take(record: ConsumerRecord, progress: JobProgress) -> None:
    if (b"ce_type", JobProgressed.__name__.encode()) not in {(key.encode(), value) for key, value in record.headers}:
        return
    try:
        progress.take(decode_event(JobProgressed, record.value))
    except InvalidInput as err:
        logs.get().warning("ignored a record", topic=record.topic, offset=record.offset, error=err.message)
