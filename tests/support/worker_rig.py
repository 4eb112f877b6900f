"""A worker under test: the real one, in this process, on the real Kafka and Redis.

Models are put into the registry's log as the optimizer would; requests come from `confluent-kafka`, which knows only
the documented contract.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager

from aiokafka import TopicPartition
from confluent_kafka import Producer

from services.worker.app import serve
from shared import events, kafka, registry_log, replies
from shared.artifacts import ArtifactStore
from shared.outcomes import Watermarks, read_outcome
from shared.topics import DEAD_LETTERS, OUTCOMES
from support.waiting import eventually


class Rig:
    """What a test does to a worker and sees of it."""

    def __init__(self, settings, log, redis, producer):
        self.settings = settings
        self.log = log
        self.replies = redis
        self._aio = producer
        self._producer = Producer({"bootstrap.servers": settings.kafka_bootstrap_servers, "linger.ms": 0})
        self._made = set()
        self._store = ArtifactStore(settings.artifact_store_url)

    async def store(self, content):
        """Put bytes into the artifact store."""

        async def chunks():
            yield content

        return await self._store.put_stream(chunks(), limit_bytes=len(content))

    async def upload(self, name, model, variant="fp32", processing=None):
        """Put a model through an optimizer that lets everything pass; returns the version's number."""
        await self.ensure(name)
        artifact = await self.store(model.content)
        upload_id = uuid.uuid4().hex
        uploaded = events.ModelUploaded(model=name, upload_id=upload_id, artifact=artifact, processing=processing)
        registry = await self.log.publish(uploaded)
        number = registry.models[name].uploads[upload_id]
        attempt = {"model": name, "version": number, "attempt": 1, "owner": "rig"}
        await self.log.publish(events.OptimizationClaimed(**attempt))
        await self.log.publish(
            events.VariantReady(
                **attempt,
                variant=variant,
                artifact=artifact,
                signature=model.signature,
                batch_cap=model.batch_cap,
                measurements=events.Measurements(byte_size=artifact.byte_size),
            )
        )
        await self.log.publish(events.ModelReady(**attempt, variant=variant, reason="the rig lets everything pass"))
        return number

    async def ensure(self, name):
        """The model's request topic is there, as the gateway would have made it."""
        if name not in self._made:
            await kafka.ensure_topics(self.settings, name)
            self._made.add(name)

    async def send(self, model, value, *, key=None, partition=None, **headers):
        """Produce one request; returns its (partition, offset)."""
        await self.ensure(model)
        loop = asyncio.get_running_loop()
        delivered = loop.create_future()

        def on_delivery(error, message):
            loop.call_soon_threadsafe(
                delivered.set_exception if error else delivered.set_result,
                RuntimeError(str(error)) if error else (message.partition(), message.offset()),
            )

        where = {} if partition is None else {"partition": partition}
        self._producer.produce(
            self.settings.topics.requests(model),
            value,
            key=key,
            headers=[(name if name == "ce_id" else name.replace("_", "-"), value) for name, value in headers.items()],
            on_delivery=on_delivery,
            **where,
        )
        assert await asyncio.to_thread(self._producer.flush, 10) == 0, "Kafka did not take the request"
        return await delivered

    async def result(self, model, request_id, *, within_s=15.0):
        """The answer in Redis."""

        async def look():
            return (await self.replies.get([(model, request_id)]))[0]

        return await eventually(look, within_s=within_s, what=f"a result of {request_id}")

    async def outcomes(self, model, count, *, within_s=15.0):
        """The accepted outcomes of a model's requests, once there are `count`, by (partition, offset)."""
        topic = self.settings.topics.requests(model)

        async def look():
            marks, found = Watermarks(), {}
            for record in await self.read(self.settings.topics.name(OUTCOMES)):
                receipt = read_outcome(record.key, record.value)
                if receipt.request.topic == topic and marks.accept(receipt):
                    found[receipt.request.partition, receipt.request.offset] = receipt
            assert len(found) >= count, f"{len(found)} of {count} outcomes"
            return found

        return await eventually(look, within_s=within_s, what=f"{count} outcomes of {model}")

    async def dead_letters(self, model):
        """The dead letters of a model's requests."""
        topic = self.settings.topics.requests(model).encode()
        records = await self.read(self.settings.topics.name(DEAD_LETTERS))
        return [record for record in records if dict(record.headers)["x-original-topic"] == topic]

    async def read(self, topic):
        """All records of a topic, in log order per partition."""
        async with kafka.started(lambda: kafka.consumer(self.settings), "test") as consumer:
            partitions = [TopicPartition(topic, p) for p in await self._aio.partitions_for(topic)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            await consumer.seek_to_beginning(*partitions)
            records = []
            for partition, end in ends.items():
                while await consumer.position(partition) < end:
                    fetched = await consumer.getmany(*partitions, timeout_ms=500)
                    records += [record for batch in fetched.values() for record in batch]
            return records


@asynccontextmanager
async def worker_running(settings):
    """A worker in this process, stopped (and so drained) at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(serve(settings, stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, 40)


@asynccontextmanager
async def rig(settings):
    """The rig, without a worker."""
    await kafka.ensure_topics(settings)
    async with (
        kafka.started(lambda: kafka.producer(settings), "rig") as producer,
        registry_log.follow(settings, producer) as log,
        replies.connect(settings) as redis,
    ):
        yield Rig(settings, log, redis, producer)
