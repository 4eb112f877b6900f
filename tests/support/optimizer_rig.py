"""Optimizers as processes on real Kafka, and the registry's log and the store as an uploader has them."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager, contextmanager

import psutil
from aiokafka import TopicPartition

from services.optimizer.rows import packed
from shared import events as ev
from shared import kafka, registry_log, topics
from shared.artifacts import ArtifactStore
from shared.codec import decode_event
from shared.heartbeat_events import Heartbeat
from shared.optimization import Optimization
from support.processes import service
from support.waiting import eventually

WITHIN_S = 180.0
"""For a job on a machine that is busy with other tests."""


class Rig:
    """The registry's log and the store, as an uploader has them."""

    def __init__(self, settings, log):
        self.settings = settings
        self.log = log
        self.store = ArtifactStore(settings.artifact_store_url)

    async def upload(self, model, made, upload_id="u", candidates=("int8-weight-only",), options=None):
        content = made if isinstance(made, bytes) else made.SerializeToString()

        async def chunks():
            yield content

        artifact = await self.store.put_stream(chunks(), limit_bytes=10**9)
        if options is None and candidates is not None:
            options = Optimization(candidates=candidates)
        event = ev.ModelUploaded(model=model, upload_id=upload_id, artifact=artifact, optimization=options)
        registry = await self.log.publish(event)
        return registry.version(model, registry.model(model).uploads[upload_id])

    async def becomes(self, model, *states, number=1):
        """The version, once it is in one of the states."""
        return await eventually(
            lambda: version if (version := self.log.registry.version(model, number)).state in states else None,
            within_s=WITHIN_S,
            what=f"{model} {states}",
        )

    async def ended(self, model, number=1):
        return await self.becomes(model, "ready", "rejected", number=number)

    async def store_data(self, **arrays):
        async def chunks():
            yield packed(arrays)

        return await self.store.put_stream(chunks(), limit_bytes=10**8)

    async def died(self, process):
        """Wait until an optimizer has killed itself; returns the registry with all that it wrote."""
        await eventually(lambda: process.poll() is not None, within_s=WITHIN_S, what="the death of an optimizer")
        assert process.returncode == -signal.SIGKILL
        return await self.log.caught_up()

    async def facts(self, event_type):
        """All events of a type in the log."""
        records = [record for record in await records_of(self, topics.MODELS) if type_of(record) == event_type.__name__]
        return [decode_event(event_type, record.value) for record in records]


@asynccontextmanager
async def optimizer_rig(settings):
    await kafka.ensure_topics(settings)
    async with (
        kafka.started(lambda: kafka.producer(settings), "test") as producer,
        registry_log.follow(settings, producer) as log,
    ):
        yield Rig(settings, log)


class Starter:
    """Starts services of a rig by name, as contexts that end with them."""

    def __init__(self, rig, directory):
        self.rig = rig
        self.directory = directory

    @contextmanager
    def __call__(self, name="o1", kind="optimizer", base=None, *, dies=None, **changed):
        """An optimizer, or another service with the settings `base`. `dies` is of `dying_optimizer`."""
        base = base or self.rig.settings
        settings = base.model_copy(update={"instance": f"{self.rig.settings.instance}-{name}", **changed})
        special = {} if dies is None else {"module": "tests.support.dying_optimizer", **dies}
        with (self.directory / f"{name}.log").open("ab") as log, service(kind, settings, log, **special) as process:
            yield process


def children(process):
    """All processes below one."""
    return psutil.Process(process.pid).children(recursive=True)


def runs(process):
    """Whether a process of `psutil` is there and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it was there a moment ago
        return False


async def heard(rig, *names):
    """Wait until heartbeats of the instances whose names end so are in the log."""

    async def look():
        beats = [decode_event(Heartbeat, record.value) for record in await records_of(rig, topics.WORKERS)]
        return all(any(beat.instance.endswith(name) for beat in beats) for name in names)

    await eventually(look, within_s=WITHIN_S, what=f"heartbeats of {', '.join(names)}")


def type_of(record):
    return dict(record.headers)["ce_type"].decode()


async def records_of(rig, topic):
    """All records of a fixed topic."""
    async with kafka.started(lambda: kafka.consumer(rig.settings), "test") as consumer:
        partition = TopicPartition(rig.settings.topics.name(topic), 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        records = []
        while await consumer.position(partition) < end:
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                records += batch
        return records
