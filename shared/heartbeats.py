"""Heartbeats: who is alive, on what kind of machine, holding what; through the compacted topic `workers`.

A worker and an optimizer publish one every interval, and when what they hold has changed. A reader holds the last of
each instance and counts it as alive until two intervals and a second have passed without one, by the reader's own
clock since *it* read the record, so that clocks need not agree. A record that was already old when it was read is told
by its broker timestamp.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from shared import compacted, logs, topics
from shared.background import set_within
from shared.codec import cloud_event_headers, encode_event
from shared.heartbeat_events import Heartbeat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiokafka import AIOKafkaProducer, ConsumerRecord

    from shared.settings import PlatformSettings

INTERVAL_S = 2.0
_LEAST_INTERVAL_S = 0.1
_GRACE_S = 1.0


async def publish(
    settings: PlatformSettings,
    producer: AIOKafkaProducer,
    beat: Callable[[], Heartbeat],
    changed: asyncio.Event | None = None,
) -> None:
    """Publish `beat()` every interval until cancelled, and soon after `changed` is set: what it holds is news."""
    topic = settings.topics.name(topics.WORKERS)
    changed = changed or asyncio.Event()
    while True:
        heartbeat = beat()
        try:
            await producer.send_and_wait(
                topic,
                encode_event(heartbeat),
                key=heartbeat.instance.encode(),
                headers=cloud_event_headers(event_type=Heartbeat.__name__, source=heartbeat.instance),
            )
        except KafkaError as err:
            logs.get().warning("heartbeat not sent", error=repr(err))
        await asyncio.sleep(_LEAST_INTERVAL_S)
        await set_within(changed, INTERVAL_S - _LEAST_INTERVAL_S)
        changed.clear()


class Heartbeats:
    """The last heartbeat of every instance. Build it with `follow`."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Heartbeat]] = {}
        self._news = asyncio.Event()

    def alive(self) -> list[Heartbeat]:
        """Instances heard of lately."""
        return [beat for _, beat in self.heard_lately()]

    def heard_lately(self) -> list[tuple[float, Heartbeat]]:
        """The same, each with the time (`time.monotonic`) of its last heartbeat."""
        now_s = time.monotonic()
        return [(at_s, beat) for at_s, beat in self._last.values() if now_s - at_s < 2 * beat.interval_s + _GRACE_S]

    def is_alive(self, owner: str) -> bool:
        """Whether this run of an instance (`instance/incarnation`) was heard of lately."""
        return any(f"{beat.instance}/{beat.incarnation}" == owner for beat in self.alive())

    def heard(self, beat: Heartbeat, age_s: float) -> None:
        """Take in a heartbeat that was written `age_s` seconds ago."""
        self._last[beat.instance] = (time.monotonic() - max(0.0, age_s), beat)
        self._news.set()

    async def until(self, done: Callable[[list[Heartbeat]], bool]) -> None:
        """Return when `done` says so of the living: asked at each heartbeat, and now and then, since instances die."""
        while not done(self.alive()):
            self._news.clear()
            await set_within(self._news, INTERVAL_S)


@asynccontextmanager
async def follow(settings: PlatformSettings) -> AsyncIterator[Heartbeats]:
    """Follow `workers` from the beginning: it is compacted, so that is short."""
    heartbeats = Heartbeats()

    def take(beat: Heartbeat, record: ConsumerRecord) -> None:
        heartbeats.heard(beat, time.time() - record.timestamp / 1000)

    async with compacted.followed(settings, topics.WORKERS, Heartbeat, take):
        yield heartbeats
