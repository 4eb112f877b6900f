"""One measurement of one variant in a process of its own; prints one JSON line.

`produce`: a producer and a group-less consumer on one loop, from `send` to the moment `getmany` hands the record over.
`reply`: `SET NX GET EX` pipelined with one `PUBLISH`, from the call to the moment the subscriber wakes.
A process each, because the loop, the C extension and the clients' caches would otherwise leak from one variant into
the next. It measures one variant and does not compare: `compare.py` repeats and alternates.
"""

import argparse
import asyncio
import json
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from benchmarks.hops import kit

PAYLOAD = b"x" * 1000
LATENCY_RECORDS = 300
CONCURRENT_RECORDS = 6_400
PIPELINED_RECORDS = 20_000


class Seen:
    """Hands each record's arrival to whoever produced it; the record's key is its number."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[None]] = {}

    def expect(self, number: int) -> asyncio.Future[None]:
        """A future that completes once record `number` was fetched."""
        self.waiting[number] = asyncio.get_running_loop().create_future()
        return self.waiting[number]

    async def consume(self, consumer: AIOKafkaConsumer) -> None:
        """Complete futures until cancelled."""
        while True:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    self.waiting.pop(int(record.key)).set_result(None)


async def one(producer: AIOKafkaProducer, seen: Seen, topic: str, number: int) -> float:
    """Send one record and wait until it was fetched; milliseconds."""
    arrived = seen.expect(number)
    started = time.perf_counter()
    await producer.send_and_wait(topic, PAYLOAD, key=b"%d" % number)
    await arrived
    return (time.perf_counter() - started) * 1000


async def produce(servers: kit.Servers, producer_options: dict[str, Any], consumer_options: dict[str, Any]) -> Any:
    """Latency alone, latency and rate with 64 at once, rate when pipelined."""
    topic = kit.unique("hop1")
    await kit.create_topics(servers, {topic: 4})
    seen = Seen()
    async with (
        kit.producer(servers, **producer_options) as producer,
        kit.reader(servers, topic, **consumer_options) as consumer,
    ):
        consuming = asyncio.create_task(seen.consume(consumer))
        for number in range(50):
            await one(producer, seen, topic, number)
        alone = [await one(producer, seen, topic, number) for number in range(LATENCY_RECORDS)]

        numbers = iter(range(CONCURRENT_RECORDS))
        together: list[float] = []

        async def lane() -> None:
            together.extend([await one(producer, seen, topic, number) for number in numbers])

        started = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(64)))
        together_per_s = CONCURRENT_RECORDS / (time.perf_counter() - started)

        started, cpu = time.perf_counter(), time.process_time()
        arrivals = [seen.expect(number) for number in range(PIPELINED_RECORDS)]
        for number in range(PIPELINED_RECORDS):
            await producer.send(topic, PAYLOAD, key=b"%d" % number)
        await asyncio.gather(*arrivals)
        pipelined_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        consuming.cancel()
    return {
        "alone_ms": alone,
        "together_ms": together,
        "together_per_s": together_per_s,
        "pipelined_per_s": PIPELINED_RECORDS / pipelined_s,
        "pipelined_cpu_us": cpu_s / PIPELINED_RECORDS * 1e6,
    }


async def reply(servers: kit.Servers, batch: int) -> Any:
    """Store `batch` results with set-if-absent and announce them; until the subscriber has the announcement."""
    client, listening = kit.redis_client(servers), kit.redis_client(servers)
    channel = kit.unique("gateway")
    pubsub = listening.pubsub()
    await pubsub.subscribe(channel)
    await pubsub.get_message(timeout=5)
    elapsed: list[float] = []
    rounds = 600 if batch == 1 else 200
    for number in range(rounds):
        started = time.perf_counter()
        async with client.pipeline(transaction=False) as pipeline:
            for member in range(batch):
                key = f"hops:result:{channel}:{number}:{member}"
                pipeline.set(key, PAYLOAD[:300], nx=True, get=True, ex=kit.RESULT_TTL_S)
            await pipeline.execute()
        await client.publish(channel, PAYLOAD[:40] * batch)
        while (await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)) is None:
            pass
        elapsed.append((time.perf_counter() - started) * 1000)
    await pubsub.aclose()  # type: ignore[no-untyped-call]  # as redis-py has it
    await listening.aclose()
    await client.aclose()
    return {"reply_ms": elapsed, "replies_per_s": rounds * batch / (sum(elapsed) / 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["produce", "reply"])
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--loop", default="uvloop", choices=["uvloop", "asyncio"])
    parser.add_argument("--producer", type=json.loads, default={})
    parser.add_argument("--consumer", type=json.loads, default={})
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    servers = kit.Servers(args.kafka, args.redis)
    if args.what == "produce":
        result = kit.run(produce(servers, args.producer, args.consumer), loop=args.loop)
    else:
        result = kit.run(reply(servers, args.batch), loop=args.loop)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
