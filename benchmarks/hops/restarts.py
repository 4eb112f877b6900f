"""Broker and Redis killed and restarted, or hung, under the whole loop: what is lost and raised, how long it takes.

Starting and killing servers is not this module's business: it calls a control command with two words, the server
(`kafka`, `redis`) and what to do (`kill`, `start`, `stop`, `cont`).
"""

import asyncio
import contextlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from benchmarks.hops import kit
from benchmarks.hops.faults import RATE_PER_S, RUN_MS, WARM_S
from benchmarks.hops.ledger import Ledger, follow, settle
from benchmarks.hops.members import Gateway, Stage, member

AFTER_S = 8.0
SUMMED = ["acked", "acked_lost", "doubled", "results_lost", "missing"]
LEDGER = ["gaps", "disagreements"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One outage: which server, killed or hung, for how long, under which producer settings."""

    name: str
    server: str
    down_s: float
    hung: bool = False
    producer: dict[str, Any] = field(default_factory=dict)
    recover: str = "dropped"


SCENARIOS = [
    Scenario("Kafka SIGKILL, started after 3 s", "kafka", 3),
    Scenario("Kafka SIGKILL, started after 15 s", "kafka", 15),
    Scenario("the same, request_timeout_ms 3000", "kafka", 15, producer={"request_timeout_ms": 3_000}),
    Scenario("the same, request_timeout_ms 40000", "kafka", 15, producer={"request_timeout_ms": 40_000}),
    Scenario("the same, idempotence off", "kafka", 15, producer={"enable_idempotence": False}),
    Scenario(
        "idempotence off, seek_to_committed", "kafka", 15, producer={"enable_idempotence": False}, recover="committed"
    ),
    Scenario("Kafka SIGSTOP for 15 s", "kafka", 15, hung=True),
    Scenario("Redis SIGKILL, started after 1 s", "redis", 1),
    Scenario("Redis SIGKILL, started after 15 s", "redis", 15),
    Scenario("Redis SIGSTOP for 10 s", "redis", 10, hung=True),
]


@dataclass(slots=True)
class Finding:
    """What one outage showed. Seconds count from the moment the server was started or continued."""

    acked: int
    acked_lost: int
    doubled: int
    results_lost: int
    missing: int
    ledger: Ledger
    up_after_s: float
    ack_after_s: float
    outcome_after_s: float
    errors: Counter[str]


async def order(control: str, server: str, what: str) -> None:
    """Have the control command do something to a server."""
    process = await asyncio.create_subprocess_exec(control, server, what)
    if await process.wait():
        raise RuntimeError(f"{control} {server} {what} failed with {process.returncode}")


async def run(servers: kit.Servers, control: str, scenario: Scenario) -> Finding:
    """One outage."""
    stage = await Stage.create(servers)
    ledger = Ledger()
    flags = ["--run-ms", RUN_MS, "--producer", json.dumps(scenario.producer), "--recover", scenario.recover]
    async with contextlib.AsyncExitStack() as running:
        gateway = await running.enter_async_context(Gateway(stage, settings=scenario.producer))
        workers = [await running.enter_async_context(member(stage, name, *flags)) for name in ("w0", "w1")]
        await asyncio.gather(*(worker.said("assigned") for worker in workers))
        following = asyncio.create_task(follow(stage, ledger))
        async with gateway.asking(RATE_PER_S):
            await asyncio.sleep(WARM_S)
            await order(control, scenario.server, "stop" if scenario.hung else "kill")
            await asyncio.sleep(scenario.down_s)
            back_ms = kit.now_ms()
            await order(control, scenario.server, "cont" if scenario.hung else "start")
            up_ms = await answering(stage, scenario.server)
            await asyncio.sleep(AFTER_S)
        missing = await settle(stage, ledger)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        lost, doubled = await audit(stage, gateway)
        results_lost = await audit_results(stage, gateway, ledger)
    errors = Counter(gateway.errors)
    errors.update(f"worker {e}" for worker in workers for e in worker.errors())
    errors.update(f"{worker.name}: {f}" for worker in workers for f in worker.facts if f["event"] == "started_over")
    errors.update(f"worker fact: {f['event']}" for worker in workers for f in worker.facts if f["at_ms"] > back_ms)
    return Finding(
        acked=len(gateway.acked),
        acked_lost=lost,
        doubled=doubled,
        results_lost=results_lost,
        missing=missing,
        ledger=ledger,
        up_after_s=(up_ms - back_ms) / 1000,
        ack_after_s=(next((ms for ms, _ in gateway.acked if ms > back_ms), math.inf) - back_ms) / 1000,
        outcome_after_s=(next((o.seen_ms for o in ledger.accepted if o.seen_ms > back_ms), math.inf) - back_ms) / 1000,
        errors=errors,
    )


async def answering(stage: Stage, server: str) -> float:
    """The moment the server answers a new client, in monotonic milliseconds."""
    async with asyncio.timeout(120):
        while True:
            try:
                if server == "redis":
                    async with kit.redis_client(stage.servers, timeout_s=1, retries=0) as client:
                        await client.get("hops:nothing")
                else:
                    async with kit.producer(stage.servers, enable_idempotence=True):
                        pass
            except (RedisError, KafkaError):
                await asyncio.sleep(0.1)
            else:
                return kit.now_ms()


async def audit(stage: Stage, gateway: Gateway) -> tuple[int, int]:
    """How many acknowledged requests the topic has not, and how many requests it has twice."""
    counts: Counter[int] = Counter()
    async with kit.reader(stage.servers, stage.topic) as log:
        ends = await log.end_offsets(log.assignment())
        while any([await log.position(tp) < end for tp, end in ends.items()]):
            for records in (await log.getmany(timeout_ms=500)).values():
                counts.update(int(record.key) for record in records)
    return sum(number not in counts for _, number in gateway.acked), sum(n > 1 for n in counts.values())


async def audit_results(stage: Stage, gateway: Gateway, ledger: Ledger) -> int:
    """How many acknowledged requests have no result in Redis, or one that no outcome names."""
    keys = [f"hops:result:{stage.topic}:{number}" for _, number in gateway.acked]
    try:
        stored = await gateway.redis.mget(keys)
    except RedisError:
        return len(keys)
    named = {digest.encode() for digest in ledger.digests.values()}
    return sum(value is None or value not in named for value in stored)


async def main(servers: kit.Servers, control: str, scenarios: list[Scenario], repeats: int) -> None:
    """Every outage `repeats` times; print what was lost and what was raised."""
    found: dict[str, list[Finding]] = {scenario.name: [] for scenario in scenarios}
    for _ in range(repeats):
        for scenario in scenarios:
            found[scenario.name].append(await run(servers, control, scenario))
            print(scenario.name, replace(found[scenario.name][-1], ledger=Ledger()), flush=True)
    kit.table(
        f"Outages under {RATE_PER_S} requests/s, two workers, {repeats} runs each",
        [
            "outage",
            "s to server up",
            "s to first ack",
            "s to first outcome",
            *(name.replace("_", " ") for name in SUMMED),
            *LEDGER,
            "repeats",
        ],
        [
            (
                name,
                kit.across([f.up_after_s for f in findings]),
                kit.across([f.ack_after_s for f in findings]),
                kit.across([f.outcome_after_s for f in findings]),
                *(sum(getattr(f, name) for f in findings) for name in SUMMED),
                *(sum(getattr(f.ledger, name) for f in findings) for name in LEDGER),
                [f.ledger.repeats for f in findings],
            )
            for name, findings in found.items()
        ],
    )
    kit.table(
        "What was raised",
        ["outage", "errors"],
        [
            (name, "; ".join(f"{n}x {what}" for what, n in sum((f.errors for f in fs), Counter[str]()).items()))
            for name, fs in found.items()
        ],
    )
