"""The load generator for Kafka alone, written with `confluent-kafka` and the documented contract.

A process of its own (`python -m benchmarks.serving.kafka_load`) that reads a `KafkaLoad` as JSON. Two ways to load:

    outstanding > 0   so many requests are under way at a time: the next is produced when an answer has been read
    outstanding = 0   `beforehand` requests are produced while nobody takes any; then, from the line `measuring` on,
                      how fast they are drained

A request counts when its answer has been read from the answers' topic. Where results also lie in Redis, a thread asks
for every 64th until it is there: the time from produce to result, at its polling interval of 2 ms; and at the end all
ids that were answered within the window are looked up, which gives the rate of results.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import uuid
from array import array
from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack
import numpy as np
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from redis import Redis

from benchmarks.serving.closed_loop import SAMPLES, quantile
from benchmarks.serving.redis_probes import Probes

_PROBED = 64
_POLL_S = 0.02
_AT_ONCE = 2000
_PRODUCED_AT_ONCE = 500
_LAST_ANSWERS_S = 20.0
_DRAIN_TIMEOUT_S = 60.0
_METADATA_TIMEOUT_S = 20.0
_DTYPES = {"FP32": "<f4", "INT32": "<i4", "INT64": "<i8"}


@dataclass(frozen=True, slots=True)
class KafkaLoad:
    """What to produce and where to look for answers.

    With `id_header` that header is the id and records have no key, so that librdkafka fills one partition's batch after
    the other. Without, the key is the id, there and back; then all that is produced at once goes to one partition, in
    turn, to the same effect.
    """

    bootstrap_servers: str
    requests: str
    answers: str
    headers: dict[str, str]
    id_header: str
    success_mark: str
    """What stands in every answer that is a success and in no other."""
    bodies: list[str]
    outstanding: int
    beforehand: int
    warmup_s: float
    window_s: float
    redis_url: str | None = None
    result_key: str = ""


@dataclass(slots=True)
class Measured:
    """As `closed_loop.Measured`, with the results of Redis beside the answers of Kafka."""

    window_s: float
    answered: int
    statuses: dict[str, int]
    faults: dict[str, int]
    p50_ms: float
    p99_ms: float
    mean_ms: float
    generator_cpu_share: float
    results: int | None = None
    """Of the requests answered within the window, how many have their result in Redis."""
    result_p50_ms: float | None = None
    result_p99_ms: float | None = None
    samples: dict[int, str] = field(default_factory=dict)


class KafkaLoop:
    """One producer, one consumer, one thread between them; librdkafka has its own."""

    def __init__(self, load: KafkaLoad) -> None:
        self._load = load
        self._bodies = [body.encode() for body in load.bodies]
        self._headers: list[tuple[str, str | bytes | None]] = [
            (name, value.encode()) for name, value in load.headers.items()
        ]
        self._mark = load.success_mark.encode()
        self._producer = Producer(
            {
                "bootstrap.servers": load.bootstrap_servers,
                "acks": "all",
                "linger.ms": 2 if load.outstanding > 16 or load.beforehand else 0,
                "socket.nagle.disable": True,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._consumer = Consumer(
            {
                "bootstrap.servers": load.bootstrap_servers,
                "group.id": f"bench-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "socket.nagle.disable": True,
            }
        )
        self._redis = Redis.from_url(load.redis_url) if load.redis_url else None
        self._probes = Probes(self._redis, load.result_key) if self._redis else None
        self._run = uuid.uuid4().hex[:12]
        self._next = 0
        self._partitions = 0
        self._turn = 0
        """Of the partitions, where the generator chooses them."""
        self._pending: dict[str, float] = {}
        self._latencies_s = array("d")
        self._answered: list[str] = []
        self._failed = 0
        self._samples: dict[int, str] = {}

    def run(self) -> Measured:
        """Connect, load, measure, let the last answers come in."""
        self._assign()
        if self._probes:
            self._probes.start()
        window_s, cpu_s = self._drain() if self._load.beforehand else self._stream()
        latencies_ms = sorted(1000 * each for each in self._latencies_s)
        answered, failed = self._answered, self._failed
        print("measured", flush=True)
        self._finish()
        measured = Measured(
            window_s=window_s,
            answered=len(latencies_ms),
            statuses={"200": len(answered) - failed, "failed": failed},
            faults={"no answer": len(self._pending)} if self._pending else {},
            p50_ms=quantile(latencies_ms, 0.50),
            p99_ms=quantile(latencies_ms, 0.99),
            mean_ms=sum(latencies_ms) / max(1, len(latencies_ms)),
            generator_cpu_share=cpu_s / window_s,
            samples=self._samples,
        )
        self._add_results(measured, answered)
        return measured

    def _assign(self) -> None:
        """Read all partitions of the answers' topic from their ends on; returns when that is so."""
        topic, requests = self._load.answers, self._load.requests
        self._partitions = len(self._consumer.list_topics(requests, _METADATA_TIMEOUT_S).topics[requests].partitions)
        partitions = self._consumer.list_topics(topic, _METADATA_TIMEOUT_S).topics[topic].partitions
        ends = [
            TopicPartition(
                topic, each, self._consumer.get_watermark_offsets(TopicPartition(topic, each), _METADATA_TIMEOUT_S)[1]
            )
            for each in partitions
        ]
        self._consumer.assign(ends)
        self._consumer.poll(0)

    def _stream(self) -> tuple[float, float]:
        """So many outstanding; seconds of the window, and of CPU time in it."""
        self._exchange(time.perf_counter() + self._load.warmup_s)
        self._latencies_s, self._answered, self._failed = array("d"), [], 0
        if self._probes:
            self._probes.forget()
        print("measuring", flush=True)
        began_s, cpu_s = time.perf_counter(), time.process_time()
        self._exchange(began_s + self._load.window_s)
        return time.perf_counter() - began_s, time.process_time() - cpu_s

    def _exchange(self, until_s: float) -> None:
        while time.perf_counter() < until_s:
            self._produce(self._load.outstanding - len(self._pending))
            self._consume()

    def _drain(self) -> tuple[float, float]:
        """All produced beforehand; seconds until all were answered, and of CPU time in them."""
        for start in range(0, self._load.beforehand, _PRODUCED_AT_ONCE):
            self._produce(min(_PRODUCED_AT_ONCE, self._load.beforehand - start))
        if self._producer.flush(_DRAIN_TIMEOUT_S):
            raise KafkaException("Kafka did not take all requests in time")
        print("measuring", flush=True)
        began_s, cpu_s = time.perf_counter(), time.process_time()
        self._pending = dict.fromkeys(self._pending, began_s)
        while self._pending and time.perf_counter() - began_s < _DRAIN_TIMEOUT_S:
            self._consume()
        return time.perf_counter() - began_s, time.process_time() - cpu_s

    def _produce(self, count: int) -> None:
        self._turn = (self._turn + 1) % self._partitions
        for _ in range(count):
            self._produce_one()
        self._producer.poll(0)

    def _produce_one(self) -> None:
        number = self._next
        self._next += 1
        request_id = f"{self._run}-{number}"
        encoded_id = request_id.encode()
        now_s = time.perf_counter()
        topic, body = self._load.requests, self._bodies[number % len(self._bodies)]
        if self._load.id_header:
            self._producer.produce(topic, body, headers=[*self._headers, (self._load.id_header, encoded_id)])
        else:
            self._producer.produce(topic, body, encoded_id, partition=self._turn, headers=self._headers)
        self._pending[request_id] = now_s
        if self._probes and number % _PROBED == 0:
            self._probes.expect(request_id, now_s)

    def _consume(self) -> None:
        """Take what is there; wait a little for the first."""
        first = self._consumer.poll(_POLL_S)
        if first is None:
            return
        now_s = time.perf_counter()
        self._take(first, now_s)
        for message in self._consumer.consume(_AT_ONCE, 0):
            self._take(message, now_s)

    def _take(self, message: Message, now_s: float) -> None:
        if message.error() is not None:
            raise KafkaException(message.error())
        request_id = self._id_of(message)
        sent_s = self._pending.pop(request_id, None)
        if sent_s is None:
            return  # another's, or a repeat
        self._latencies_s.append(now_s - sent_s)
        self._answered.append(request_id)
        value = message.value() or b""
        if self._mark not in value:
            self._failed += 1
        number = int(request_id.rpartition("-")[2]) % len(self._bodies)
        if self._redis is None and number < SAMPLES:
            self._samples[number] = value.decode(errors="replace")

    def _id_of(self, message: Message) -> str:
        if not self._load.id_header:
            return (message.key() or b"").decode(errors="replace")
        value = dict(message.headers() or []).get(self._load.id_header)
        return value.decode(errors="replace") if isinstance(value, bytes) else ""

    def _finish(self) -> None:
        """Wait for the answers under way, so that the next slice begins on quiet topics."""
        self._latencies_s, self._answered = array("d"), []
        deadline_s = time.perf_counter() + _LAST_ANSWERS_S
        while self._pending and time.perf_counter() < deadline_s:
            self._consume()
        self._consumer.close()

    def _add_results(self, measured: Measured, answered: list[str]) -> None:
        """What Redis has: how many of the answered, and the answers themselves for a sample."""
        if self._redis is None or self._probes is None:
            return
        self._probes.stop()
        measured.results = 0
        for start in range(0, len(answered), _AT_ONCE):
            some = answered[start : start + _AT_ONCE]
            measured.results += int(self._redis.exists(*(self._load.result_key.format(id=each) for each in some)))
        latencies_ms = sorted(1000 * each for each in self._probes.latencies_s)
        measured.result_p50_ms, measured.result_p99_ms = quantile(latencies_ms, 0.5), quantile(latencies_ms, 0.99)
        for request_id in answered[-len(self._bodies) :]:
            number = int(request_id.rpartition("-")[2]) % len(self._bodies)
            if number < SAMPLES:
                stored: Any = self._redis.get(self._load.result_key.format(id=request_id))
                measured.samples[number] = _as_json(stored)


def _as_json(stored: bytes | None) -> str:
    """A result as it lies in Redis, as an Open Inference Protocol body."""
    if stored is None:
        return "no result in Redis"
    result = msgpack.unpackb(stored)
    outputs = [
        {**each, "data": np.frombuffer(each["data"], _DTYPES[each["datatype"]]).tolist()} for each in result["outputs"]
    ]
    return json.dumps({"outputs": outputs, "status": result["status"], "error": result["error"]})


def main() -> None:
    load = KafkaLoad(**json.load(sys.stdin))
    loop = KafkaLoop(load)
    gc.freeze()
    gc.disable()
    print(json.dumps(asdict(loop.run())), flush=True)


if __name__ == "__main__":
    main()
