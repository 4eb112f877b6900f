"""Heartbeats on a real Kafka: who is alive, told by the reader's clock."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from shared import heartbeats, kafka, topics
from shared.codec import cloud_event_headers, encode_event
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat
from shared.heartbeats import Heartbeats
from support.raw_batches import malformed, produce
from support.waiting import eventually

pytestmark = pytest.mark.stack


@pytest.fixture
async def settings(backbone):
    settings = backbone.settings()
    await kafka.ensure_topics(settings)
    return settings


def beat(instance="worker-1", incarnation="a", interval_s=2.0):
    return Heartbeat(
        instance=instance,
        incarnation=incarnation,
        service="worker",
        machine=MachineClass(isa="avx2"),
        registry_offset=1,
        interval_s=interval_s,
    )


@asynccontextmanager
async def beating(settings, make, changed=None):
    """An instance that lives for as long as this is entered."""
    async with kafka.started(lambda: kafka.producer(settings), "test") as producer:
        task = asyncio.create_task(heartbeats.publish(settings, producer, make, changed))
        try:
            yield producer
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_who_beats_is_alive_and_who_stops_is_not_for_long(settings, monkeypatch):
    monkeypatch.setattr(heartbeats, "INTERVAL_S", 0.2)
    async with heartbeats.follow(settings) as heard:
        async with beating(settings, lambda: beat(interval_s=0.2)):
            await eventually(lambda: heard.is_alive("worker-1/a"))
            assert [found.instance for found in heard.alive()] == ["worker-1"]
            assert not heard.is_alive("worker-1/b")
            assert not heard.is_alive("worker-1")
            await asyncio.sleep(2.0)  # longer than it may be silent: 2 * 0.2 s + 1 s
            await eventually(lambda: heard.is_alive("worker-1/a"))  # by a beat that came since
        await eventually(lambda: not heard.is_alive("worker-1/a"), within_s=5)
        assert heard.alive() == []


async def test_news_are_told_before_the_interval_is_over(settings, monkeypatch):
    monkeypatch.setattr(heartbeats, "INTERVAL_S", 60.0)
    told, changed = ["a"], asyncio.Event()
    async with (
        heartbeats.follow(settings) as heard,
        beating(settings, lambda: beat(incarnation=told[-1]), changed),
    ):
        await eventually(lambda: heard.is_alive("worker-1/a"))
        told.append("b")
        changed.set()
        await eventually(lambda: heard.is_alive("worker-1/b"))


async def test_a_restarted_instance_is_another(settings):
    async with heartbeats.follow(settings) as heard:
        async with beating(settings, beat):
            await eventually(lambda: heard.is_alive("worker-1/a"))
        async with beating(settings, lambda: beat(incarnation="b")):
            await eventually(lambda: heard.is_alive("worker-1/b"))
        assert not heard.is_alive("worker-1/a")


async def test_an_old_heartbeat_does_not_raise_the_dead(settings, monkeypatch):
    """A reader that starts later takes the age from the broker's clock, not from when it read."""
    monkeypatch.setattr(heartbeats, "INTERVAL_S", 0.1)
    async with beating(settings, lambda: beat(interval_s=0.1)):
        await asyncio.sleep(0.3)
    await asyncio.sleep(1.5)
    async with heartbeats.follow(settings) as heard:
        async with beating(settings, lambda: beat("worker-2", interval_s=5.0)):
            await eventually(lambda: heard.is_alive("worker-2/a"))
        assert not heard.is_alive("worker-1/a")


async def test_garbage_among_heartbeats_is_skipped(settings):
    topic = settings.topics.name(topics.WORKERS)
    async with heartbeats.follow(settings) as heard, beating(settings, beat) as producer:
        headers = cloud_event_headers(event_type="Heartbeat", source="x")
        await producer.send_and_wait(topic, b"\xc1", key=b"x", headers=headers)
        await producer.send_and_wait(topic, None, key=b"x")
        await produce(settings, topic, 0, malformed())
        await producer.send_and_wait(topic, encode_event(beat("worker-3")), key=b"worker-3")
        await eventually(lambda: heard.is_alive("worker-3/a"))


def test_age_counts_against_the_interval(monkeypatch):
    now_s = 1000.0
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now_s)
    heard = Heartbeats()
    heard.heard(beat(interval_s=2.0), age_s=4.9)
    assert heard.is_alive("worker-1/a")
    heard.heard(beat(interval_s=2.0), age_s=5.0)
    assert not heard.is_alive("worker-1/a")
    heard.heard(beat(interval_s=2.0), age_s=-60.0)  # the broker's clock is ahead of ours
    assert heard.is_alive("worker-1/a")
    now_s += 5.0
    assert not heard.is_alive("worker-1/a")
