"""Telling the others: the statistics of each version, on the compacted topic `statistics`.

Once a second, those versions whose requests had outcomes since. The numbers are cumulative, so one that is not sent is
made good by the next, and the first round after a start sends all. Nothing is sent before the fold has caught up with
the log as it was at the start: a monitor that was killed folds the end of the log again, and numbers would go back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiokafka.errors import KafkaError

from shared import logs, topics
from shared.codec import cloud_event_headers, encode_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import AIOKafkaProducer

    from services.monitor.fold import OutcomeFold
    from shared.outcome_events import ModelStatistics
    from shared.settings import PlatformSettings

INTERVAL_S: Final = 1.0


class Publisher:
    """Publishes what changed in `fold`, which it only reads."""

    def __init__(self, settings: PlatformSettings, producer: AIOKafkaProducer, fold: OutcomeFold) -> None:
        self._topic = settings.topics.name(topics.STATISTICS)
        self._source = settings.instance
        self._producer = producer
        self._fold = fold
        self._told: dict[str, int] = {}
        """Requests of each series when it was last published."""

    async def run(self, caught_up: Callable[[], bool]) -> None:
        """Publish each second until cancelled, from the moment on in which `caught_up` says so."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            if caught_up():
                await self.publish()

    async def publish(self) -> None:
        """Send what changed. Kafka being away only makes the statistics old."""
        changed = self.changed()
        try:
            sent = [await self._send(event) for event, _ in changed.values()]
            await asyncio.gather(*sent)
        except KafkaError as err:
            logs.get().warning("statistics not sent", error=repr(err))
            return
        self._told |= {key: requests for key, (_, requests) in changed.items()}

    def changed(self) -> dict[str, tuple[ModelStatistics, int]]:
        """The events to be sent, and the requests in each; all of one moment, at the offsets of the fold."""
        events: dict[str, tuple[ModelStatistics, int]] = {}
        for key, series in self._fold.series.items():
            requests = series.statuses.total()
            if series.version is None or requests == self._told.get(key):
                continue
            event = series.totals.event(series.model, series.version, self._fold.offsets)
            if event is not None:
                events[key] = event, requests
        return events

    async def _send(self, event: ModelStatistics) -> asyncio.Future[object]:
        sent: asyncio.Future[object] = await self._producer.send(
            self._topic,
            encode_event(event),
            key=f"{event.model}/{event.version}".encode(),
            headers=cloud_event_headers(event_type=type(event).__name__, source=self._source),
        )
        return sent
