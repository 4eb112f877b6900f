"""A worker without a model: the request path of DESIGN.md reduced to its two hops and the ordered outcome log.

One turn: poll; store results with set-if-absent and announce them; append one outcome per request, in request-offset
order per request partition; await the acknowledgements; commit. The next poll starts after that, so each request
partition has one append in flight. A revoke waits for the turn to end. Facts are printed as JSON lines.

`--at POINT --signal STOP|KILL` arms the worker: on SIGUSR1 it sends itself that signal the next time it passes POINT,
so that a zombie can be made at every place where it could hurt. It validates nothing, runs nothing, and never gives up.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.structs import ConsumerRecord
from redis.exceptions import RedisError

from benchmarks.hops import kit

POINTS = ["before_reply", "before_append", "appending", "before_commit"]
Polled = Mapping[TopicPartition, Sequence[ConsumerRecord]]


class AppendFailedError(Exception):
    """An append failed for good: what follows in that partition must be dropped."""


def say(event: str, **facts: Any) -> None:
    """Print one fact with its moment (monotonic milliseconds)."""
    print(json.dumps({"at_ms": kit.now_ms(), "event": event, **facts}), flush=True)


def brief(err: BaseException | None) -> str:
    """Kind and beginning of an error, and its cause's."""
    cause = f" from {type(err.__cause__).__name__}" if err and err.__cause__ else ""
    return f"{type(err).__name__}: {' '.join(str(err).split())[:60]}{cause}"


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka publishes no types
    """One member of the group; `run` works until cancelled."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.servers = kit.Servers(args.kafka, args.redis)
        self.consumer: AIOKafkaConsumer = None
        self.producer: AIOKafkaProducer = None
        self.redis = kit.redis_client(self.servers, timeout_s=args.redis_timeout_s)
        self.turn = asyncio.Lock()
        self.armed = False
        self.executions = itertools.count()
        self.partitioner = DefaultPartitioner()
        self.done = 0
        self.first: tuple[float, float] | None = None

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Let the turn end: its commit still counts for the old generation."""
        say("revoking", partitions=sorted(tp.partition for tp in revoked))
        async with self.turn:
            say("revoked")

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Say what this member owns now."""
        say("assigned", partitions=sorted(tp.partition for tp in assigned))

    async def run(self) -> None:
        """Poll and work until cancelled."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: setattr(self, "armed", True))
        settings = {**kit.CONSUMER, **json.loads(self.args.consumer), "group_instance_id": self.args.instance_id}
        self.consumer = AIOKafkaConsumer(bootstrap_servers=self.args.kafka, group_id=self.args.group, **settings)
        await self.start_producer()
        self.consumer.subscribe([self.args.topic], listener=self)
        await self.consumer.start()
        while True:
            try:
                polled = await self.consumer.getmany(timeout_ms=1000, max_records=self.args.max_records)
                if polled:
                    async with self.turn:
                        await self.work(polled)
            except KafkaError as err:
                say("error", where="poll or commit", error=brief(err))
                await asyncio.sleep(0.05)
            except AppendFailedError as err:
                say("append_failed", error=brief(err.__cause__))
                await self.start_over(polled)

    async def start_producer(self) -> None:
        """Take a new producer; it has a new producer id and so no memory of a lost sequence number."""
        settings = {**kit.PRODUCER, **json.loads(self.args.producer)}
        while True:
            self.producer = AIOKafkaProducer(bootstrap_servers=self.args.kafka, **settings)
            try:
                await self.producer.start()
            except KafkaError as err:  # the broker that failed the append is still away
                say("error", where="producer start", error=brief(err))
                await self.producer.stop()
                await asyncio.sleep(0.2)
            else:
                return

    async def start_over(self, polled: Polled) -> None:
        """After an append that failed for good: new producer, back to the first offset of the dropped turn.

        Not `seek_to_committed`: just after a broker's restart it was seen to return None and leave the position where
        it was, and the dropped turn became a gap in the log. `--recover committed` shows that.
        """
        old = self.producer
        await self.start_producer()
        try:
            owned = [tp for tp in polled if tp in self.consumer.assignment()]
            if self.args.recover == "committed":
                sought = await self.consumer.seek_to_committed(*owned)
            else:
                sought = {tp: polled[tp][0].offset for tp in owned}
                for tp, offset in sought.items():
                    self.consumer.seek(tp, offset)
            say("started_over", sought={tp.partition: offset for tp, offset in sought.items()})
        except KafkaError as err:
            say("error", where="start over", error=brief(err))
        await asyncio.wait_for(old.stop(), 5)

    async def work(self, polled: Polled) -> None:
        """One turn over what one poll returned."""
        if self.first is None:
            self.first = (time.monotonic(), time.process_time())
        await self.point("before_reply")
        if self.args.run_ms:
            await asyncio.sleep(self.args.run_ms / 1000)
        winners = await self.reply(polled)
        await self.point("before_append")
        if self.args.append != "none":
            try:
                await asyncio.gather(*(self.append(tp, records, winners) for tp, records in polled.items()))
            except KafkaError as err:
                raise AppendFailedError from err
        await self.point("before_commit")
        if self.args.commit:
            await self.consumer.commit({tp: records[-1].offset + 1 for tp, records in polled.items()})
        self.done += sum(len(records) for records in polled.values())
        if self.done >= self.args.report_at:
            elapsed_s, cpu_s = time.monotonic() - self.first[0], time.process_time() - self.first[1]
            say("drained", per_s=self.done / elapsed_s, cpu_us=cpu_s / self.done * 1e6)
            self.args.report_at = float("inf")

    async def reply(self, polled: Polled) -> dict[bytes, str]:
        """Store what was computed unless something is stored already; the winner is the answer."""
        ids = [record.key for records in polled.values() for record in records]
        mine = [f"{self.args.name}:{os.getpid()}:{next(self.executions)}" for _ in ids]
        while True:
            try:
                async with self.redis.pipeline(transaction=False) as pipeline:
                    for id_, value in zip(ids, mine, strict=True):
                        key = f"hops:result:{self.args.topic}:{id_.decode()}"
                        pipeline.set(key, value, nx=True, get=True, ex=kit.RESULT_TTL_S)
                    pipeline.publish(self.args.channel, b" ".join(ids))
                    stored = (await pipeline.execute())[:-1]
            except RedisError as err:
                say("error", where="reply", error=brief(err))
                await asyncio.sleep(0.1)
            else:
                return {id_: old.decode() if old else value for id_, old, value in zip(ids, stored, mine, strict=True)}

    async def append(self, tp: TopicPartition, records: Sequence[ConsumerRecord], winners: Mapping[bytes, str]) -> None:
        """Append the outcomes of one request partition in order and await their acknowledgements."""
        key = f"{tp.topic}/{tp.partition}".encode()
        values = [kit.receipt(tp.topic, tp.partition, r.offset, self.args.name, winners[r.key]) for r in records]
        if self.args.append == "send":
            acks = [await self.producer.send(self.args.outcomes, value, key=key) for value in values]
        else:
            acks = await self.send_batches(key, values)
        if self.armed and self.args.at == "appending":
            for _ in range(10):  # the sender task writes the request to the socket
                await asyncio.sleep(0)
        await self.point("appending")
        await asyncio.gather(*acks)

    async def send_batches(self, key: bytes, values: Sequence[bytes]) -> list[asyncio.Future[Any]]:
        """The same through `create_batch` and `send_batch`."""
        partitions = sorted(await self.producer.partitions_for(self.args.outcomes))
        partition = self.partitioner(key, partitions, partitions)
        acks: list[asyncio.Future[Any]] = []
        batch = self.producer.create_batch()
        for value in values:
            if batch.append(key=key, value=value, timestamp=None) is None:
                acks.append(await self.producer.send_batch(batch, self.args.outcomes, partition=partition))
                batch = self.producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        return [*acks, await self.producer.send_batch(batch, self.args.outcomes, partition=partition)]

    async def point(self, name: str) -> None:
        """If armed for this point, stop or kill this process here."""
        if not self.armed or self.args.at != name:
            return
        self.armed = False
        say("signalling", point=name)
        os.kill(os.getpid(), getattr(signal, f"SIG{self.args.signal}"))
        say("woke", point=name)


async def serve(args: argparse.Namespace) -> None:
    """Work until SIGTERM; then end the turn, leave the group, and go."""
    worker = Worker(args)
    working = asyncio.create_task(worker.run())
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    await asyncio.wait([working, asyncio.create_task(ending.wait())], return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        working.result()
    async with worker.turn:
        working.cancel()
        await asyncio.wait([working])
    await worker.consumer.stop()
    await worker.producer.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("kafka", "redis", "topic", "outcomes", "group", "channel", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--instance-id")
    parser.add_argument("--append", choices=["none", "send", "batch"], default="send")
    parser.add_argument("--commit", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--max-records", type=int, default=64)
    parser.add_argument("--run-ms", type=float, default=0)
    parser.add_argument("--report-at", type=float, default=float("inf"))
    parser.add_argument("--redis-timeout-s", type=float, default=5)
    parser.add_argument("--at", choices=POINTS)
    parser.add_argument("--signal", choices=["STOP", "KILL"], default="STOP")
    parser.add_argument("--recover", choices=["dropped", "committed"], default="dropped")
    parser.add_argument("--consumer", default="{}")
    parser.add_argument("--producer", default="{}")
    args = parser.parse_args()

    kit.run(serve(args))


if __name__ == "__main__":
    main()
