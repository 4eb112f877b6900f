"""Single questions about aiokafka, each answered by an experiment that prints what happened."""

import asyncio
import time
from collections.abc import Awaitable

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from benchmarks.hops import kit


async def attempt(producer: AIOKafkaProducer, topic: str, size: int) -> str:
    """Send one record of `size` bytes; `acked` or the error."""
    try:
        await asyncio.wait_for(producer.send_and_wait(topic, b"x" * size, partition=0), 15)
    except (KafkaError, TimeoutError) as err:
        return type(err).__name__
    return "acked"


async def after_a_refusal(servers: kit.Servers) -> list[tuple[str, str]]:
    """The broker refuses one record for good (too large): what happens to the next ones of that partition?"""
    rows = []
    for idempotent in (True, False):
        topic = kit.unique("refusal")
        await kit.create_topics(servers, {topic: 1})
        settings = {"enable_idempotence": idempotent, "max_request_size": 4 * 2**20}
        async with kit.producer(servers, **settings) as producer:
            sizes = (100, 2 * 2**20, 100, 100)
            seen = [f"{size} B: {await attempt(producer, topic, size)}" for size in sizes]
            await asyncio.sleep(1)
            seen.append(f"a second later: {await attempt(producer, topic, 100)}")
        async with kit.producer(servers, **settings) as successor:
            seen.append(f"new producer: {await attempt(successor, topic, 100)}")
        rows.append((f"idempotence {'on' if idempotent else 'off'}", "; ".join(seen)))
    return rows


async def batch_order(servers: kit.Servers) -> list[tuple[str, str]]:
    """Is the order of `send_batch` calls kept with idempotence, when none waits for the one before?"""
    topic = kit.unique("batches")
    await kit.create_topics(servers, {topic: 1})
    async with kit.producer(servers) as producer:
        acks = []
        for first in range(0, 4000, 10):
            batch = producer.create_batch()
            for number in range(first, first + 10):
                batch.append(key=None, value=b"%d" % number, timestamp=None)
            acks.append(await producer.send_batch(batch, topic, partition=0))
        await asyncio.gather(*acks)
    numbers: list[int] = []
    async with kit.reader(servers, topic) as log:
        while len(numbers) < 4000:
            for records in (await log.getmany(timeout_ms=500)).values():
                numbers.extend(int(record.value) for record in records)
    return [("400 batches of 10", "in order" if numbers == list(range(4000)) else "out of order")]


async def behind_a_long_poll(servers: kit.Servers) -> list[tuple[int, str, str, str]]:
    """An idle consumer's fetch waits at the broker: what do a seek and a question on the same connection wait for?"""
    rows = []
    for wait_ms in (100, 500, 5_000):
        topic = kit.unique("poll")
        await kit.create_topics(servers, {topic: 2})
        first, second = (TopicPartition(topic, number) for number in (0, 1))
        async with kit.producer(servers) as producer, kit.reader(servers, topic, fetch_max_wait_ms=wait_ms) as idle:
            await producer.send_and_wait(topic, b"old", partition=1)
            while not await idle.getmany(timeout_ms=500):
                pass
            await idle.getmany(timeout_ms=150)
            question_ms = await _elapsed_ms(idle.end_offsets([first]))
            await idle.getmany(timeout_ms=150)
            idle.seek(second, 0)
            seek_ms = await _elapsed_ms(idle.getmany(timeout_ms=20_000))
            await idle.getmany(timeout_ms=150)
            getting = asyncio.create_task(_elapsed_ms(idle.getmany(timeout_ms=20_000)))
            await asyncio.sleep(0.05)
            await producer.send_and_wait(topic, b"new", partition=0)
            rows.append((wait_ms, f"{question_ms:.0f}", f"{seek_ms:.0f}", f"{await getting - 50:.0f}"))
    return rows


async def _elapsed_ms(doing: Awaitable[object]) -> float:
    started = time.perf_counter()
    await doing
    return (time.perf_counter() - started) * 1000


async def main(servers: kit.Servers) -> None:
    """All questions."""
    kit.table(
        "After a record the broker refuses for good", ["producer", "what each send met"], await after_a_refusal(servers)
    )
    waits = await behind_a_long_poll(servers)
    kit.table(
        "An idle consumer with a fetch waiting at the broker (ms until the answer)",
        ["fetch_max_wait_ms", "end_offsets", "seek back, then getmany", "a new record"],
        waits,
    )
    kit.table("send_batch with idempotence", ["sent", "log"], await batch_order(servers))
