"""The archiver's one composition root: Kafka, Redis and the store, where the archive stands, and on from there."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from services.audit import retention, signing
from services.audit.archiver import Archiver, patiently
from services.audit.judge import Judge
from services.audit.kafka_source import clients
from services.audit.opening import open_lanes
from services.audit.store import ArchiveStore
from services.audit.writer import Writer
from shared import health, kafka, logs, topics
from shared.errors import AiaasError
from shared.outcomes import Watermarks
from shared.telemetry import Telemetry

if TYPE_CHECKING:
    from aiokafka import TopicPartition

    from services.audit.kafka_source import Clients
    from services.audit.settings import AuditSettings
    from services.audit.writer import Lane

_COLLECT_BYTES = 256 * 1024
"""The broker collects so much before it answers, or as long as a fetch may wait: nobody is in a hurry here."""


async def serve(settings: AuditSettings, stop: asyncio.Event) -> None:
    """Archive until told to stop."""
    signer = signing.load_or_make(settings.audit_key_path)
    waiting: list[str] = ["kafka"]
    async with (
        health.served(settings.health_host, settings.health_port, lambda: waiting[0] if waiting else None),
        asyncio.TaskGroup() as tasks,
    ):
        work = tasks.create_task(_work(settings, signer, waiting), name="archiver")
        await stop.wait()
        work.cancel()


async def _work(settings: AuditSettings, signer: signing.Signer, waiting: list[str]) -> None:
    store = ArchiveStore(settings.artifact_store_url)
    writer = Writer(store, signer, settings.instance)
    await kafka.ensure_topics(settings)
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(clients(settings, fetch_min_bytes=_COLLECT_BYTES))
        producer = await stack.enter_async_context(kafka.started(lambda: kafka.producer(settings), "metrics"))
        archiver = await _opened(settings, store, writer, found)
        logs.get().info("archiving", store=settings.artifact_store_url, public_key=signer.public_key)
        waiting.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(archiver.run(), name="archive")
                tasks.create_task(retention.run(settings, store), name="retention")
                tasks.create_task(Telemetry(settings, "archiver", producer).run(), name="telemetry")
        finally:
            with suppress(AiaasError):  # it is read again at the next start
                await archiver.flush()


async def _opened(settings: AuditSettings, store: ArchiveStore, writer: Writer, found: Clients) -> Archiver:
    async def opened() -> tuple[Watermarks, dict[TopicPartition, Lane], frozenset[TopicPartition]]:
        about = (store, writer, found.admin, found.outcomes, found.cluster_id)
        outcomes = await open_lanes(*about, settings.topics.name(topics.OUTCOMES))
        models = await open_lanes(*about, settings.topics.name(topics.MODELS))
        marks = Watermarks({at: highest for lane in outcomes.values() for at, highest in lane.marks.items()})
        return marks, outcomes | models, frozenset(models)

    marks, lanes, plain = await patiently("the archive", opened)
    judge = Judge(settings.topics, found.ends, marks)
    return Archiver(settings, found, judge, writer, lanes, plain)
