"""What it costs to archive an outcome with its request and result, and to verify it again.

    python -m benchmarks.archive [COUNT]

Writes requests to a Kafka of its own and results to a Redis of its own (or to those given by
`AIAAS_KAFKA_BOOTSTRAP_SERVERS` and `AIAAS_REDIS_URL`), then the outcomes, and archives them in this process. CPU time
of this process, which runs on one core; what the archive takes on disk; its largest resident memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
import uuid
from pathlib import Path

from msgspec.structs import replace

from benchmarks.fold import receipt
from services.audit import archive_reader
from services.audit.app import serve
from services.audit.settings import AuditSettings
from services.audit.store import ArchiveStore
from services.audit.verify.run import verify
from services.cli.local import LocalStack, LocalStackSettings
from shared import kafka, replies, topics
from shared.codec import encode_event
from shared.outcomes import OutcomeWriter
from shared.results import Result
from shared.tensors import Tensor, output_digest

VALUES = 64
"""FP32 numbers in a request, and in a result."""
AT_A_TIME = 500


def value(number: int) -> bytes:
    numbers = [round(((number * 7919 + column) % 10_007) / 10_007, 4) for column in range(VALUES)]
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, VALUES], "data": numbers}]}).encode()


async def prepare(settings: AuditSettings, count: int) -> None:
    """Requests, results, outcomes."""
    await kafka.ensure_topics(settings)
    await kafka.ensure_topics(settings, "m")
    topic = settings.topics.requests("m")
    async with (
        kafka.started(lambda: kafka.producer(settings), "benchmark") as producer,
        replies.connect(settings) as redis,
        OutcomeWriter(settings) as writer,
    ):
        for start in range(0, count, AT_A_TIME):
            receipts, results = [], []
            for offset in range(start, min(start + AT_A_TIME, count)):
                body = value(offset)
                outputs = (Tensor("y", "FP32", (1, VALUES), hashlib.sha512(body).digest() * (VALUES * 4 // 64)),)
                mine = replace(
                    receipt(topic, offset),
                    request_id=f"{settings.topic_prefix}{offset}",
                    input_sha256=hashlib.sha256(body).hexdigest(),
                    output_sha256=output_digest(outputs),
                )
                receipts.append(mine)
                results.append(
                    Result(id=mine.request_id, status="succeeded", model_name="m", model_version=1, outputs=outputs)
                )
                await producer.send(topic, body, partition=0)
            await producer.flush()
            await redis.put(results)
            await writer.append(topic, 0, [(each.request_id, encode_event(each)) for each in receipts])


async def archive(settings: AuditSettings, count: int) -> None:
    store, stop = ArchiveStore(settings.artifact_store_url), asyncio.Event()
    began_s, began = time.monotonic(), time.process_time()
    running = asyncio.create_task(serve(settings, stop))
    while await archived(settings, store) < count:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(1)
    stop.set()
    await running
    each_us = (time.process_time() - began) / count * 1e6
    print(f"archive: {each_us:.1f} us of CPU an outcome, {count / (time.monotonic() - began_s):,.0f} a second")
    print(f"         {size_bytes(settings) / count:.0f} bytes each in Parquet, of {len(value(0))} in a request alone")


def size_bytes(settings: AuditSettings) -> int:
    return sum(path.stat().st_size for path in Path(settings.artifact_store_url[7:]).rglob("*.parquet"))


async def archived(settings: AuditSettings, store: ArchiveStore) -> int:
    found = 0
    for log in await archive_reader.logs_of(store, settings.topics.name(topics.OUTCOMES)):
        for partition in await archive_reader.partitions_of(store, log):
            found += sum([each.next - each.first async for each in archive_reader.manifests(store, log, partition)])
    return found


async def measure(count: int, directory: Path) -> int:
    settings = AuditSettings(
        topic_prefix=f"bench-{uuid.uuid4().hex[:8]}.",
        artifact_store_url=(directory / "store").as_uri(),
        data_dir=directory / "data",
        audit_interval_s=2,
        audit_niceness=0,
    )
    await prepare(settings, count)
    await archive(settings, count)
    began = time.process_time()
    report = await verify(settings, kafka=False)
    print(f"verify:  {(time.process_time() - began) / count * 1e6:.1f} us an outcome; it holds: {report.ok}")
    print(f"largest resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0 if report.ok else 1


async def main(count: int) -> int:
    with tempfile.TemporaryDirectory(prefix="aiaas-archive-") as scratch:
        if os.environ.get("AIAAS_KAFKA_BOOTSTRAP_SERVERS"):
            return await measure(count, Path(scratch))
        async with LocalStack(LocalStackSettings(data_dir=Path(scratch) / "servers"), []) as stack:
            os.environ |= stack.environment()
            return await measure(count, Path(scratch))


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)))
