"""Replay at full size: what survives kills, how fast it is, and what live requests feel of it.

    python -m benchmarks.replay [--requests 5000] [--rows 100000]

A stack of its own (Apache Kafka, Redis, gateway, two workers). Three parts, each of which prints its figures:

1. Mixed requests of two models, over HTTP and from Kafka, while workers are killed; then everything is stopped and
   started again, servers included. A replay must find nothing changed.
2. One weight of a stored artefact is changed: without the digest check exactly the rows that an independent computation
   says are affected must be `changed`; with it, all are refused.
3. Many rows from Kafka, how fast they were served and how fast they are replayed from the archive; and the p99 of a
   steady live load alone and during a replay.

Exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from confluent_kafka import Producer
from onnx import numpy_helper

from services.audit import archive_source, kafka_source
from services.audit.records import Selection
from services.audit.replay import runs
from services.audit.replay.replaying import Asked, replay
from services.cli.local import standard_services
from shared.artifacts import ArtifactStore
from shared.settings import PlatformSettings
from tests.support import onnx_models
from tests.support.front_door import body, front_door
from tests.support.local import local_stack

if TYPE_CHECKING:
    from collections.abc import Awaitable

KILLS = 5
LIVE_RATE = 50
LIVE_S = 15.0
MOST_SLOWER = 1.5
"""Times as long the live p99 may be during a replay."""


def settings_of(stack: Any) -> PlatformSettings:
    """Of a client of the stack."""
    names = {name.removeprefix("AIAAS_").lower(): value for name, value in stack.environment.items()}
    known = {name: value for name, value in names.items() if name in PlatformSettings.model_fields}
    return PlatformSettings(**known)


async def replayed(stack: Any, model: str | None = None, source_of: Any = kafka_source, **how: Any) -> Any:
    settings = settings_of(stack)
    async with source_of.open_source(settings) as source, runs.connected(settings) as to_workers:
        store, asked = ArtifactStore(settings.artifact_store_url), Asked(Selection(model=model), **how)
        return await replay(source, to_workers, store, asked)


async def archived(stack: Any, model: str, count: int) -> None:
    """Return when the archiver has written all outcomes of a model."""
    give_up_s = time.monotonic() + 300
    async with archive_source.open_source(settings_of(stack)) as source:
        while True:
            there = 0
            async for _ in source.outcomes(Selection(model=model)):
                there += 1
            if there >= count:
                return
            if time.monotonic() > give_up_s:
                raise SystemExit(f"{there} of {count} outcomes of {model} are archived")
            await asyncio.sleep(5)


def row(number: int, rows: int = 1) -> Any:
    return np.random.default_rng(number).standard_normal((rows, 4)).astype(np.float32)


async def until(outcomes: Any, count: int, within_s: float, topic: str = "") -> None:
    """So many outcomes of requests in a topic, or in all."""
    give_up_s = time.monotonic() + within_s
    while (there := sum(1 for at in outcomes.accepted if not topic or at[0] == topic)) < count:
        await asyncio.to_thread(outcomes.poll)
        if time.monotonic() > give_up_s:
            raise SystemExit(f"{there} of {count} outcomes within {within_s:g} s")
        await asyncio.sleep(0.05)


async def mixed(stack: Any, names: list[str], count: int) -> None:
    """Requests of both models in both ways, while workers are killed in turns."""
    rng = random.Random(7)
    async with front_door(stack.environment) as door:
        for seed, name in enumerate(names):
            await door.serve(name, onnx_models.linear(seed=seed).content)
        outcomes, places = door.outcomes(), asyncio.Semaphore(200)

        async def ask(number: int) -> None:
            name, inputs = names[number % 2], {"x": row(number, 1 + number % 4)}
            if number % 2:
                await door.send(name, body(inputs), ce_id=f"{name}-{number}")
            else:
                await door.infer(name, inputs, timeout=300_000_000)
            places.release()

        async def kill() -> None:
            for index in range(KILLS):
                await until(outcomes, (index + 1) * count // (KILLS + 2), 300)
                await asyncio.sleep(rng.random() / 4)
                child = stack.child(f"worker-{1 + index % 2}")
                await child.kill()
                await child.wait_ready()

        killing = asyncio.create_task(kill())
        async with asyncio.TaskGroup() as asking:
            for number in range(count):
                await places.acquire()
                asking.create_task(ask(number))
                await asyncio.sleep(0.002)
        await killing
        await until(outcomes, count, 300)


async def changed_weight(stack: Any, name: str, count: int) -> tuple[int, int, bool]:
    """Rows affected by another weight, rows found so, and whether both are the same and the check refuses all."""
    async with front_door(stack.environment) as door:
        model = onnx_models.linear(seed=11)
        await door.serve(name, model.content)
        outcomes = door.outcomes()
        inputs = [row(number) * np.array([number % 2, 1, 1, 1], np.float32) for number in range(count)]
        for number, x in enumerate(inputs):
            await door.send(name, body({"x": x}), ce_id=f"{name}-{number}")
        await until(outcomes, count, 300, door.topics.requests(name))
        digest = {receipt.artifact_sha256 for receipt in outcomes.accepted.values() if receipt.model_name == name}
    [sha256] = digest
    path = Path(settings_of(stack).artifact_store_url.removeprefix("file://")) / "sha256" / sha256[:2] / sha256[2:]
    content = path.read_bytes()
    graph = onnx.load_from_string(content)
    weights = numpy_helper.to_array(graph.graph.initializer[0]).copy()
    weights[0, 1] += 1.0
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, graph.graph.initializer[0].name))
    other = graph.SerializeToString()
    old, new = (onnxruntime.InferenceSession(each) for each in (content, other))
    affected = {
        f"{name}-{number}"
        for number, x in enumerate(inputs)
        if old.run(None, {"x": x})[0].tobytes() != new.run(None, {"x": x})[0].tobytes()
    }
    path.write_bytes(other)
    try:
        unchecked = await replayed(stack, name, digest_check=False)
        checked = await replayed(stack, name)
    finally:
        path.write_bytes(content)
    found = {diff["request_id"] for diff in unchecked.diffs if diff["class"] == "changed"}
    refused = checked.reasons == {"digest_mismatch": count}
    return len(affected), len(found), found == affected and unchecked.replayed == count and refused


def produce(bootstrap_servers: str, topic: str, value: bytes, count: int) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 5})
    for number in range(count):
        producer.produce(topic, value, headers={"ce_id": f"{topic}-{number}"})
        if number % 1000 == 0:
            producer.flush(60)
    producer.flush(60)


async def many(stack: Any, name: str, count: int) -> tuple[float, float, Any]:
    """Rows a second as they were served from Kafka and as they are replayed from the archive, and what that found."""
    async with front_door(stack.environment) as door:
        await door.serve(name, onnx_models.linear(seed=5).content)
        outcomes, value = door.outcomes(), body({"x": row(1)})
        topic = door.topics.requests(name)
        begun_s = time.monotonic()
        await asyncio.to_thread(produce, door.bootstrap_servers, topic, value, count)
        await until(outcomes, count, 900, topic)
        served = count / (time.monotonic() - begun_s)
    await archived(stack, name, count)
    found = await replayed(stack, name, archive_source)
    return served, found.replayed / found.seconds, found


async def live(stack: Any, name: str, until: Awaitable[Any]) -> float:
    """The p99 of a steady load over HTTP as long as something takes, in seconds."""
    waited: list[float] = []
    ended = asyncio.ensure_future(until)
    async with front_door(stack.environment) as door, asyncio.TaskGroup() as asking:

        async def ask(number: int) -> None:
            begun_s = time.monotonic()
            answer = await door.infer(name, {"x": row(number)})
            if answer.status == 200:
                waited.append(time.monotonic() - begun_s)

        begun_s, number = time.monotonic(), 0
        while not ended.done():
            asking.create_task(ask(number))
            number += 1
            await asyncio.sleep(max(0.0, begun_s + number / LIVE_RATE - time.monotonic()))
    await ended
    return float(np.percentile(waited, 99))


async def beside(stack: Any, name: str, archived: str) -> tuple[float, float, dict[str, Any]]:
    """The live p99 alone and during a replay, and what that found.

    An auditor's command: in this process it would hold up the load, and be measured in place of what it does to others.
    """
    command = (
        sys.executable,
        "-m",
        "services.cli",
        "audit",
        "replay",
        "--model",
        archived,
        "--source",
        "archive",
        "--json",
    )
    alone = await live(stack, name, asyncio.sleep(LIVE_S))
    auditor = await asyncio.create_subprocess_exec(
        *command, env=os.environ | stack.environment, stdout=asyncio.subprocess.PIPE
    )
    telling = asyncio.create_task(auditor.communicate())
    during = await live(stack, name, telling)
    told, _ = await telling
    return alone, during, json.loads(told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--skip-live", action="store_true")
    asked = parser.parse_args()
    for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):  # servers of its own: they are stopped
        os.environ.pop(given, None)
    run = hashlib.sha256(os.urandom(8)).hexdigest()[:6]
    names, missed = [f"replay-{run}-{letter}" for letter in "abcd"], []
    env = {
        "AIAAS_AUDIT_INTERVAL_S": "5",
        "AIAAS_MIN_GAIN": "1000",
        "AIAAS_TIME_BUDGET_S": "5",
        "AIAAS_RESULT_TTL_S": "86400",
    }
    with tempfile.TemporaryDirectory() as scratch:

        def start() -> Any:
            return local_stack(Path(scratch), standard_services(2), service_env=env, local_kafka="apache")

        with start() as stack:
            asyncio.run(mixed(stack, names[:2], asked.requests))
        with start() as stack:  # all of it anew, on the same data
            found = asyncio.run(replayed(stack))
            print(
                f"{asked.requests} requests, {KILLS} kills, a restart: {found.as_map() | {'diffs': len(found.diffs)}}"
            )
            if found.counts["changed"] or found.counts["identical"] < 0.99 * asked.requests:
                missed.append("replay after kills and a restart")
            affected, changed, right = asyncio.run(changed_weight(stack, names[2], min(2000, asked.requests)))
            print(f"one weight changed: {affected} rows affected, {changed} found, as they should: {right}")
            if not right:
                missed.append("one changed weight")
            served, again, found = asyncio.run(many(stack, names[3], asked.rows))
            print(f"{asked.rows} rows: served at {served:.0f}/s, replayed at {again:.0f}/s: {dict(found.counts)}")
            if again < served or found.counts["identical"] != asked.rows:
                missed.append("replay as fast as served")
            if not asked.skip_live:
                alone, during, found = asyncio.run(beside(stack, names[0], names[3]))
                times, told = during / alone, f"{alone * 1000:.1f} ms alone, {during * 1000:.1f} ms during a replay"
                print(f"live p99 {told} ({times:.2f}x; {found})")
                if times > MOST_SLOWER:
                    missed.append("live p99 during a replay")
    print(f"missed: {', '.join(missed)}" if missed else "all targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
