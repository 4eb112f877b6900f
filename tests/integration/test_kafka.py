"""Topics and clients on a real Kafka."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from shared import kafka, topics
from support.ports import free_port

pytestmark = pytest.mark.stack


@pytest.fixture
async def admin(backbone):
    settings = backbone.settings()
    async with kafka.started(lambda: AIOKafkaAdminClient(**kafka.client_options(settings)), "test") as client:
        yield client


async def partitions(admin, prefix):
    names = [name for name in await admin.list_topics() if name.startswith(prefix)]
    return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics(names)} if names else {}


async def test_topics_are_created_once_by_whoever_comes_first(backbone, admin):
    settings = backbone.settings()
    await asyncio.gather(*(kafka.ensure_topics(settings) for _ in range(4)))
    await kafka.ensure_topics(settings)
    expected = {settings.topics.name(topic): topic.partitions for topic in topics.FIXED}
    assert await partitions(admin, settings.topic_prefix) == expected


async def test_request_topics_have_the_configured_partitions_which_are_never_raised(backbone, admin):
    settings = backbone.settings(request_partitions=2)
    await kafka.ensure_topics(settings, "a", "b")
    more = backbone.settings(request_partitions=8, topic_prefix=settings.topic_prefix)
    await asyncio.gather(kafka.ensure_topics(more, "a"), kafka.ensure_topics(more, "a", "c"))
    assert await partitions(admin, settings.topic_prefix) == {
        settings.topics.requests(model, high=high): count
        for model, count in (("a", 2), ("b", 2), ("c", 8))
        for high in (False, True)
    }


async def test_topics_are_configured_as_the_map_says(backbone, admin):
    settings = backbone.settings()
    await kafka.ensure_topics(settings)
    for topic in topics.FIXED:
        name = settings.topics.name(topic)
        [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        configured = {entry[0]: entry[1] for entry in response.resources[0][4]}
        assert {key: configured[key] for key in topic.kafka_config} == topic.kafka_config, name


async def test_the_largest_record_there_may_be_fits(backbone):
    settings = backbone.settings()
    await kafka.ensure_topics(settings)
    async with kafka.started(lambda: kafka.producer(settings), "test") as producer:
        await producer.send_and_wait(settings.topics.name(topics.OUTCOMES), bytes(topics.MAX_RECORD_BYTES))
        await producer.send_and_wait(settings.topics.name(topics.DEAD_LETTERS), bytes(2 * topics.MAX_RECORD_BYTES))


async def test_a_consumer_starts_at_the_earliest_record_and_commits_nothing_by_itself(backbone):
    settings = backbone.settings()
    await kafka.ensure_topics(settings, "m")
    topic = settings.topics.requests("m")
    async with kafka.started(lambda: kafka.producer(settings), "test") as producer:
        await producer.send_and_wait(topic, b"first", partition=0)
    for _ in range(2):
        options = {"group_id": settings.topics.worker_group("m")}
        async with kafka.started(lambda: kafka.consumer(settings, topic, **options), "test") as consumer:  # noqa: B023 - called at once
            record = await asyncio.wait_for(consumer.getone(), 20)
            assert record.value == b"first"
            assert await consumer.committed(TopicPartition(topic, 0)) is None


async def test_a_client_waits_for_a_kafka_that_is_not_there_yet(backbone, capsys):
    """Start order does not matter: the address leads nowhere at first, then to Kafka."""
    settings = backbone.settings()
    addresses = iter([f"127.0.0.1:{free_port()}", settings.kafka_bootstrap_servers])

    def make():
        return AIOKafkaAdminClient(**{**kafka.client_options(settings), "bootstrap_servers": next(addresses)})

    async with asyncio.timeout(20), kafka.started(make, "a test") as client:
        assert (await client.describe_cluster())["brokers"]
    logged = capsys.readouterr().out
    assert "waiting for kafka" in logged
    assert "a test" in logged


async def test_a_start_that_is_cancelled_at_any_moment_leaves_no_connection(backbone):
    settings = backbone.settings()
    await kafka.ensure_topics(settings)
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always", ResourceWarning)
        for moment in range(40):
            starting = asyncio.create_task(kafka.start(lambda: kafka.consumer(settings), "test"))
            await asyncio.sleep(moment / 2000)
            starting.cancel()
            [client] = await asyncio.gather(starting, return_exceptions=True)
            if not isinstance(client, BaseException):
                await client.stop()
            del client, starting
            gc.collect()
    assert [str(each.message) for each in left] == []
