"""How many outcomes a second the monitor folds on one core, and where the time goes.

    python benchmarks/fold.py [COUNT]

Steps in memory: decode and validate a receipt, add it to the fold, encode a snapshot. With
`AIAAS_KAFKA_BOOTSTRAP_SERVERS` set also the whole way from that Kafka: fetch, decode, check against the ends of the
request partitions, fold. CPU time of this process, which runs on one core.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient

from services.monitor import outcome_log
from services.monitor.fold import OutcomeFold, Record
from services.monitor.history import History
from services.monitor.recorder import Recorder
from services.monitor.snapshot import Stored, encode
from shared import kafka, process
from shared.codec import encode_event
from shared.dead_letters import DeadLetters
from shared.outcome_events import BatchMembership, Coordinates, Receipt, Runtime, Timings
from shared.outcomes import OutcomeWriter, read_outcome
from shared.request_ends import RequestEnds
from shared.settings import PlatformSettings
from shared.topics import REQUESTS, outcome_key

PORTION = 500
"""Outcomes that are folded together, as in the service."""


def receipt(topic: str, offset: int) -> Receipt:
    return Receipt(
        request_id=str(uuid.UUID(int=offset)),
        model_name="m",
        model_version=1,
        variant="fp32",
        artifact_sha256="0" * 64,
        registry_offset=10,
        status="succeeded",
        request=Coordinates(cluster_id="c" * 22, topic=topic, partition=0, offset=offset),
        input_sha256="1" * 64,
        output_sha256="2" * 64,
        runtime=Runtime(engine="onnxruntime", version="1.20", provider="CPU", options={}, threads=2, isa="avx2"),
        batch=BatchMembership(id="b" * 32, index=offset % 8, size=8, padding=0, members_sha256="3" * 64),
        timings_ns=Timings(queue=1_000_000 + offset, compute_input=10_000, compute_infer=900_000, compute_output=9_000),
        worker="worker-1",
        completed_at="2025-01-01T00:00:00.000000000Z",
    )


def report(what: str, count: int, began_s: float) -> None:
    each_s = (time.process_time() - began_s) / count
    print(f"{what:<42} {each_s * 1e6:8.2f} us  {1 / each_s:10,.0f}/s")


def in_memory(count: int) -> None:
    topic = "aiaas.requests.m"
    values, key = [encode_event(receipt(topic, offset)) for offset in range(count)], outcome_key(topic, 0)
    began_s = time.process_time()
    for value in values:
        read_outcome(key, value)
    report("decode and validate", count, began_s)
    records: list[Record] = [(0, offset, read_outcome(key, value), 0) for offset, value in enumerate(values)]
    portions = [records[start : start + PORTION] for start in range(0, count, PORTION)]
    fold, began_s = OutcomeFold(), time.process_time()
    for portion in portions:
        fold.add(portion)
    report("add to the fold", count, began_s)
    recorder = Recorder()
    fold, began_s = OutcomeFold(sink=recorder), time.process_time()
    for portion in portions:
        fold.add(portion)
    report("add to the fold, and record", count, began_s)
    began_s = time.process_time()
    tables = recorder.take()
    report("make tables of what was recorded", count, began_s)
    with tempfile.TemporaryDirectory() as directory:
        history = History(Path(directory))
        began_s = time.process_time()
        history.write(history.begin(tables))
        report("write them as Parquet", count, began_s)
    began_s = time.process_time()
    encode("log", Stored(fold))
    report("encode a snapshot of one series", 1, began_s)


async def from_kafka(count: int) -> None:
    settings = PlatformSettings(topic_prefix=f"bench-{uuid.uuid4().hex[:8]}.")
    topic = settings.topics.requests("m")
    await kafka.ensure_topics(settings)
    await kafka.ensure_topics(settings, "m")
    async with AsyncExitStack() as stack:
        options = kafka.client_options(settings)
        admin = await stack.enter_async_context(kafka.started(lambda: AIOKafkaAdminClient(**options), "benchmark"))
        producer = await stack.enter_async_context(kafka.started(lambda: kafka.producer(settings), "benchmark"))
        consumer = await stack.enter_async_context(kafka.started(lambda: kafka.consumer(settings), "benchmark"))
        for _ in range(count):
            await producer.send(topic, b"{}", partition=0)
        await producer.flush()
        writer = await stack.enter_async_context(OutcomeWriter(settings))
        receipts = [receipt(topic, offset) for offset in range(count)]
        await writer.append(topic, 0, [(each.request_id, encode_event(each)) for each in receipts])

        recorder = Recorder()
        fold, log = OutcomeFold(sink=recorder), await outcome_log.describe(settings, admin)
        ends = RequestEnds(consumer, admin, settings.topics.name(REQUESTS))
        outcomes = outcome_log.OutcomeLog(settings, log, consumer, ends, DeadLetters(settings, producer))
        await outcomes.open(fold)
        began_s = time.process_time()
        running = asyncio.create_task(outcomes.run(fold, _nothing))
        while not outcomes.caught_up:  # noqa: ASYNC110 - nobody tells; what this costs is far below what is measured
            await asyncio.sleep(0.05)
        report("from Kafka: fetch, decode, check, fold", count, began_s)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        names = [name for name in await admin.list_topics() if name.startswith(settings.topic_prefix)]
        await admin.delete_topics(names)
    print("series", {key: dict(series.statuses) for key, series in fold.series.items()})


async def _nothing() -> bool:
    """The benchmark stores no state."""
    return True


if __name__ == "__main__":
    outcomes_count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    process.spare_the_collector()  # as the service does
    in_memory(outcomes_count)
    if os.environ.get("AIAAS_KAFKA_BOOTSTRAP_SERVERS"):
        asyncio.run(from_kafka(outcomes_count))
