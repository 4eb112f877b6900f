"""The registry's log on a real Kafka."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from shared import kafka, registry_log, topics
from shared.codec import cloud_event_headers, encode_event
from shared.errors import LogUnavailable
from shared.events import ModelPromoted
from shared.registry import Registry
from support.facts import made_ready, receipt, uploaded
from support.raw_batches import malformed, produce

pytestmark = pytest.mark.stack


@asynccontextmanager
async def following(settings):
    """A process that follows the log and may publish: its `RegistryLog`, and its producer for other tricks."""
    async with (
        kafka.started(lambda: kafka.producer(settings), "test") as producer,
        registry_log.follow(settings, producer) as log,
    ):
        yield log, producer


@pytest.fixture
async def settings(backbone):
    settings = backbone.settings()
    await kafka.ensure_topics(settings)
    return settings


def headers(ce_type):
    return cloud_event_headers(event_type=ce_type, source="upstream")


async def test_a_publisher_reads_back_what_became_of_its_event(settings):
    async with following(settings) as (log, _):
        assert log.registry == Registry()
        registry = await log.publish(uploaded("m", "u1"))
        assert registry.model("m").uploads == {"u1": 1}
        for event in made_ready("m"):
            registry = await log.publish(event)
        assert registry.route("m", "any").number == 1
        ignored = await log.publish(ModelPromoted(model="m", version=9))
        assert ignored.models == registry.models
        assert ignored.offset == registry.offset + 1


async def test_a_process_that_starts_later_holds_the_same_registry(settings):
    async with following(settings) as (log, _):
        for event in (uploaded("m", "u1"), *made_ready("m")):
            registry = await log.publish(event)
    async with following(settings) as (log, _):
        assert log.registry == registry


async def test_garbage_is_skipped_and_what_is_behind_it_is_read(settings):
    good = encode_event(uploaded("m", "u1"))
    garbage = [
        (b"", headers("ModelUploaded")),
        (None, headers("ModelUploaded")),
        (b"\xc1garbage", headers("ModelUploaded")),
        (b"\x91" * 100_000, headers("ModelUploaded")),
        (good, headers("ModelRetired")),
        (good, headers("NoSuchEvent")),
        (good, []),
        (good, [("ce_type", b"\xff\xfe")]),
        (good, [("ce_type", None)]),
        (encode_event(receipt()), headers("Receipt")),  # an event of another topic
    ]
    async with following(settings) as (log, producer):
        topic = settings.topics.name(topics.MODELS)
        for value, with_headers in garbage:
            await producer.send_and_wait(topic, value, key=b"\xff", headers=with_headers)
        await produce(settings, topic, 0, malformed())
        registry = await log.publish(uploaded("m", "u2"))
    assert registry.offset == len(garbage) + 3
    assert registry.model("m").uploads == {"u2": 1}


async def test_two_that_upload_at_once_get_different_versions_and_agree(backbone, settings):
    neighbour = backbone.settings(topic_prefix=settings.topic_prefix)
    async with following(settings) as (one, _), following(neighbour) as (two, _):
        seen = await asyncio.gather(
            *(log.publish(uploaded("m", f"{name}-{n}")) for n in range(10) for name, log in (("a", one), ("b", two)))
        )
        numbers = [
            registry.model("m").uploads[f"{name}-{n}"]
            for registry, (n, name) in zip(seen, [(n, name) for n in range(10) for name in "ab"], strict=True)
        ]
        assert sorted(numbers) == list(range(1, 21))
        assert await one.caught_up() == await two.caught_up()


async def test_changes_end_at_the_present(settings):
    async with following(settings) as (log, _):
        changes = aiter(log.changes())
        assert (await anext(changes)).offset == -1
        waiting = asyncio.create_task(anext(changes))
        await log.publish(uploaded("m", "u1"))
        await log.publish(uploaded("m", "u2"))
        seen = await asyncio.wait_for(waiting, 5)
        while seen.offset < 1:
            seen = await asyncio.wait_for(anext(changes), 5)
        assert sorted(seen.model("m").versions) == [1, 2]
        await changes.aclose()


@pytest.mark.usefixtures("apache_kafka")
async def test_a_moment_in_the_log_is_told_by_the_brokers_clock(settings):
    async with following(settings) as (log, producer):
        await producer.send_and_wait(
            settings.topics.name(topics.MODELS),
            encode_event(uploaded("m", "u1")),
            headers=headers("ModelUploaded"),
            timestamp_ms=1_000,  # says a writer whose clock stands at 1970
        )
        registry = await log.caught_up()
        assert registry.version("m", 1).uploaded_ms > 1_700_000_000_000


async def test_what_is_not_acknowledged_in_time_says_so(settings, monkeypatch):
    async with following(settings) as (log, _):
        monkeypatch.setattr(registry_log, "_PUBLISH_TIMEOUT_S", 0.0)
        with pytest.raises(LogUnavailable, match="ModelUploaded"):
            await log.publish(uploaded("m", "u1"))
