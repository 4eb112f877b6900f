"""The monitor's numbers against real Kafka: exact with zombies, garbage and forgeries, and through SIGKILL."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from aiokafka import TopicPartition
from msgspec.structs import replace

from services.monitor.settings import MonitorSettings
from shared import kafka, topics
from shared.codec import cloud_event_headers, encode_event, pack
from shared.outcome_events import BatchMembership, Timings
from shared.outcomes import OutcomeWriter
from support.facts import encoded, receipt
from support.ports import free_port
from support.raw_batches import malformed, produce
from support.waiting import eventually

if TYPE_CHECKING:
    from support.monitor_process import Monitor

pytestmark = pytest.mark.stack

REQUESTS = 300
"""On each of the four request partitions."""


@pytest.fixture
def settings(backbone):
    return backbone.settings(MonitorSettings, monitor_port=free_port(), monitor_snapshot_interval_s=0.2)


def outcome(settings, partition: int, offset: int, worker: str):
    """A receipt that differs by worker, so that whose counts is seen in the numbers."""
    dice = random.Random(f"{partition}/{offset}/{worker}")
    size = dice.randint(1, 8)
    return receipt(
        offset,
        topic=settings.topics.requests("m"),
        partition=partition,
        model_version=dice.randint(1, 2),
        status=dice.choice(["succeeded", "succeeded", "failed", "expired"]),
        batch=BatchMembership(id="b", index=0, size=size, padding=0, members_sha256="0" * 64),
        timings_ns=Timings(queue=dice.randint(0, 10**10), compute_infer=dice.randint(0, 10**9)),
        worker=worker,
    )


async def write(settings, partition: int, first: int, last: int, *, seed: int) -> None:
    """A worker, its successor and the zombie of the first: everyone starts at a committed offset, without a gap."""
    dice, committed, reached = random.Random(seed), first, first
    named = [settings.model_copy(update={"instance": name}) for name in ("w0", "w1")]
    async with OutcomeWriter(named[0]) as worker, OutcomeWriter(named[1]) as zombie:
        writers = [worker, zombie]
        positions = [first, first]
        while committed < last:
            who = dice.randrange(2)
            if dice.randrange(5) == 0:
                positions[who] = committed  # starts again where the group stands
            start = min(positions[who], reached)
            stop = min(start + dice.randint(1, 20), last)
            run = [outcome(settings, partition, offset, f"w{who}") for offset in range(start, stop)]
            if run:
                await writers[who].append(settings.topics.requests("m"), partition, encoded(run))
            positions[who], reached = stop, max(reached, stop)
            committed = min(reached, max(committed, dice.randint(committed, reached)))


async def write_garbage(settings, producer) -> int:
    """Records that are no outcomes; returns how many."""
    good = outcome(settings, 0, 5, "forger")
    key = topics.outcome_key(settings.topics.requests("m"), 0)
    nowhere = receipt(0, topic=settings.topics.requests("nowhere"), model_name="nowhere")
    records = [
        (None, b""),
        (key, None),
        (key, b"\xc1 no msgpack"),
        (key, pack([1, 2])),
        (key, pack({"schema": 99})),
        (b"another key", encode_event(good)),
        (key, encode_event(replace(good, model_name="another"))),
        (topics.outcome_key("x/y", 0), encode_event(receipt(0, topic="x/y"))),
        (key, encode_event(outcome(settings, 0, 10**9, "forger"))),
        (key, encode_event(outcome(settings, 0, 2**62, "forger"))),
        (topics.outcome_key(nowhere.request.topic, 0), encode_event(nowhere)),
    ]
    headers = [*cloud_event_headers(event_type="Receipt", source="forger"), ("content-type", None), ("x", b"\xff")]
    topic = settings.topics.name(topics.OUTCOMES)
    for number, (key_, value) in enumerate(records):
        await producer.send_and_wait(topic, value, key=key_, partition=number % 4, headers=headers)
    await produce(settings, topic, 2, malformed())
    return len(records) + 3


async def read_all(settings, topic: str) -> list:
    async with kafka.started(lambda: kafka.consumer(settings), "test") as consumer:
        partitions = [TopicPartition(topic, p) for p in range(4 if topic.endswith("outcomes") else 1)]
        consumer.assign(partitions)
        ends, records = await consumer.end_offsets(partitions), []
        while any([await consumer.position(at) < ends[at] for at in partitions]):
            for portion in (await consumer.getmany(timeout_ms=500)).values():
                records += portion
        return records


async def expected(settings) -> tuple[dict, dict[str, int]]:
    """The numbers, naively: the first outcome per coordinates in log order; and where the log ends."""
    first, offsets = {}, {}
    for record in await read_all(settings, settings.topics.name(topics.OUTCOMES)):
        offsets[str(record.partition)] = record.offset + 1
        where, _, number = (record.key or b"").decode().rpartition("/")
        if where == settings.topics.requests("m") and dict(record.headers)["ce_source"] in {b"w0", b"w1"}:
            offset = int(dict(record.headers)["ce_id"].decode().rsplit("-", 1)[1])
            first.setdefault((int(number), offset), dict(record.headers)["ce_source"].decode())
    counted = [outcome(settings, partition, offset, worker) for (partition, offset), worker in first.items()]
    versions = {}
    for version in (1, 2):
        of = [o for o in counted if o.model_version == version]
        versions[version] = {
            "outcomes": Counter(o.status for o in of),
            "requests_by_batch_size": Counter(str(o.batch.size) for o in of),
            "queue_ns": sum(o.timings_ns.queue for o in of),
            "infer_ns": sum(o.timings_ns.compute_infer for o in of),
        }
    return versions, dict(sorted(offsets.items()))


def shown(stats) -> dict:
    return {
        series["version"]: {
            "outcomes": series["outcomes"],
            "requests_by_batch_size": series["requests_by_batch_size"],
            "queue_ns": series["latency"]["queue"]["sum_ns"],
            "infer_ns": series["latency"]["compute_infer"]["sum_ns"],
        }
        for series in stats["models"]
    }


@pytest.mark.usefixtures("apache_kafka")
async def test_numbers_are_exact_with_zombies_garbage_forgeries_and_sigkill(settings, monitor, producer):
    for partition in range(4):
        for _ in range(REQUESTS):
            await producer.send(settings.topics.requests("m"), b"{}", partition=partition)
    await producer.flush()

    third = REQUESTS // 3
    monitor.start()
    await asyncio.gather(*(write(settings, p, 0, third, seed=p) for p in range(4)))
    garbage = await write_garbage(settings, producer)
    await eventually(lambda: _accepted(monitor, 1), within_s=90, what="the first outcomes")
    monitor.kill()
    monitor.start()
    writing = [write(settings, p, third, REQUESTS, seed=10 + p) for p in range(4)]
    await asyncio.gather(*writing, eventually(lambda: _accepted(monitor, 4 * third), within_s=90))
    monitor.kill()
    versions, offsets = await expected(settings)
    monitor.start()
    stats = await monitor.folded(offsets)

    assert shown(stats) == versions
    assert sum(sum(v["outcomes"].values()) for v in versions.values()) == 4 * REQUESTS
    assert stats["watermarks"] == {f"{settings.topics.requests('m')}/{p}": REQUESTS - 1 for p in range(4)}
    ignored = stats["ignored"]
    assert ignored["malformed"] + ignored["forged"] == garbage
    assert ignored["forged"] == 3
    assert sum(offsets.values()) == 4 * REQUESTS + garbage + ignored["repeat"]
    await monitor.ready()

    dead = await read_all(settings, settings.topics.name(topics.DEAD_LETTERS))
    origins = {(dict(d.headers)["x-original-partition"], dict(d.headers)["x-original-offset"]) for d in dead}
    assert len(origins) == garbage
    assert {dict(d.headers)["x-error-code"] for d in dead} == {b"invalid_input"}

    # Stopped in good order and started again: nothing is folded again, and nothing is different.
    assert monitor.terminate() == 0
    monitor.start()
    assert shown(await monitor.folded(offsets)) == versions


async def _accepted(monitor: Monitor, at_least: int) -> bool:
    stats = await monitor.stats()
    return bool(stats) and sum(sum(series["outcomes"].values()) for series in stats["models"]) >= at_least


async def test_a_damaged_snapshot_and_one_of_another_log_are_folded_anew(settings, monitor, producer):
    for _ in range(10):
        await producer.send_and_wait(settings.topics.requests("m"), b"{}", partition=0)
    await write(settings, 0, 0, 10, seed=1)
    versions, offsets = await expected(settings)
    path = settings.snapshot_path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{ damaged")
    monitor.start()
    assert shown(await monitor.folded(offsets)) == versions
    assert monitor.terminate() == 0
    stored = path.read_bytes()
    [held] = re.findall(rb'"offsets":{.*?}', stored)
    path.write_bytes(stored.replace(held, b'"offsets":{"3":1000000}'))  # ahead of the log's end
    monitor.start()
    assert shown(await monitor.folded(offsets)) == versions
    assert len(list(path.parent.glob("state.*.unusable"))) == 2
