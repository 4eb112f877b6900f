"""What the measurements share: clients with one place for their settings, topics, statistics, tables.

Nothing here measures anything. The settings are the subject of the decision page, so they are spelled out and
overridable; nothing of the platform's own code is imported, so the numbers are those of aiokafka and redis-py alone.
"""

import asyncio
import contextlib
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
import redis.asyncio
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

PRODUCER = {"acks": "all", "enable_idempotence": True, "linger_ms": 0, "request_timeout_ms": 10_000}
CONSUMER = {
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    "fetch_max_wait_ms": 5_000,
    "request_timeout_ms": 15_000,
    "session_timeout_ms": 6_000,
    "heartbeat_interval_ms": 1_500,
}
RESULT_TTL_S = 600
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Servers:
    """Where Kafka and Redis are."""

    kafka: str
    redis: str


def unique(name: str) -> str:
    """A topic or group name no other run has used."""
    return f"hops.{name}.{uuid.uuid4().hex[:8]}"


async def create_topics(servers: Servers, partitions: dict[str, int]) -> None:
    """Create topics (name to partition count) and wait until their leaders are known."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, count, 1) for name, count in partitions.items()])
        while any(t["error_code"] for t in await admin.describe_topics(list(partitions))):  # noqa: ASYNC110  (no event)
            await asyncio.sleep(0.05)
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def producer(servers: Servers, **overrides: Any) -> AsyncIterator[AIOKafkaProducer]:
    """A started producer with the settings under test."""
    client = AIOKafkaProducer(bootstrap_servers=servers.kafka, **{**PRODUCER, **overrides})
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


@contextlib.asynccontextmanager
async def reader(servers: Servers, topic: str, **overrides: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A started consumer without a group, assigned every partition of `topic` from the beginning."""
    settings = {**CONSUMER, "fetch_max_wait_ms": 500, **overrides}
    client = AIOKafkaConsumer(bootstrap_servers=servers.kafka, **settings)
    await client.start()
    try:
        while not (found := client.partitions_for_topic(topic)):
            client._client.add_topic(topic)  # noqa: SLF001  (no public way to ask for a topic's metadata)
            await client._client.force_metadata_update()  # noqa: SLF001
        assigned = [TopicPartition(topic, p) for p in sorted(found)]
        client.assign(assigned)
        await client.seek_to_beginning(*assigned)
        yield client
    finally:
        await client.stop()


def redis_client(servers: Servers, *, timeout_s: float = 5.0, retries: int = 3) -> redis.asyncio.Redis:
    """A Redis client that gives up on a silent server after `timeout_s` and tries `retries` times more."""
    return redis.asyncio.Redis.from_url(
        servers.redis,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
    )


def run(main: Coroutine[Any, Any, T], *, loop: str = "uvloop") -> T:
    """Run a coroutine on uvloop or on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def receipt(topic: str, partition: int, offset: int, worker: str, digest: str) -> bytes:
    """An outcome of about the size and shape of the platform's receipts (a msgpack map, about 1 KB)."""
    coordinates = {"cluster_id": "Some-cluster-id-22chars", "topic": topic, "partition": partition, "offset": offset}
    hexadecimal = "0" * 64
    fields = {
        "schema": 1,
        "request_id": f"{topic}-{partition}-{offset}",
        "duplicate_of": None,
        "tenant": "default",
        "model_name": "digits",
        "model_version": 1,
        "variant": "fp32",
        "artifact_sha256": hexadecimal,
        "registry_offset": 17,
        "status": "succeeded",
        "error_code": None,
        "request": coordinates,
        "input_sha256": hexadecimal,
        "output_sha256": digest,
        "runtime": {
            "engine": "onnxruntime",
            "version": "1.32.0",
            "provider": "CPUExecutionProvider",
            "options": {"intra_op_num_threads": 1},
            "threads": 1,
            "isa": "avx512",
        },
        "batch": {"id": hexadecimal[:32], "index": 0, "size": 8, "padding": 0, "members_sha256": hexadecimal},
        "timings_ns": {"queue": 10**6, "compute_input": 10**5, "compute_infer": 10**6, "compute_output": 10**5},
        "worker": worker,
        "reexecuted": False,
        "completed_at": "2026-01-01T00:00:00.000000000Z",
    }
    return bytes(msgpack.packb(fields))


@dataclass(frozen=True, slots=True)
class Spread:
    """Latencies or rates of one cell: minimum, median, 99th percentile."""

    low: float
    median: float
    p99: float

    def __str__(self) -> str:
        return f"{self.low:.2f} / {self.median:.2f} / {self.p99:.2f}"


def spread(values: Sequence[float]) -> Spread:
    """Order statistics of at least one value."""
    ordered = sorted(values)
    return Spread(ordered[0], statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))])


def across(values: Sequence[float]) -> str:
    """Median of repeated measurements with their range: `median (lowest to highest)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    sys.stdout.flush()


def now_ms() -> float:
    """Monotonic milliseconds, comparable between the processes of one machine."""
    return time.monotonic() * 1000
