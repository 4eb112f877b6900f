"""Memory: does it grow with the number of requests?

    python -m benchmarks.soak [--requests 100000] [--every 10000] [--data-dir DIR]

Starts a local stack of its own, sends requests half over HTTP and half straight from Kafka, and prints the resident
memory of every service after each `--every` requests, when all of them are answered. The first mark is the warm-up:
exits with 1 if a service is ever more than 10% away from it afterwards. Kafka and Redis are shown and not judged: they
keep what they are given.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from services.cli.local import standard_services
from tests.support import uploads
from tests.support.front_door import OK, FrontDoor, body, front_door, row
from tests.support.local import RunningStack, local_stack
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = f"soak-{time.time_ns()}"
"""Another in each run: a data directory may be used again."""
SERVICES = ("gateway", "worker-1", "worker-2", "optimizer", "monitor")
SERVERS = ("kafka", "redis")
CALLERS = 32
MOST_MOVED = 0.10
_MIB = 1024 * 1024


def rss_mib(stack: RunningStack) -> dict[str, float]:
    """Resident memory of every process in MiB."""
    return {name: psutil.Process(stack.child(name).pid).memory_info().rss / _MIB for name in SERVICES + SERVERS}


async def send(door: FrontDoor, numbers: Iterator[int]) -> None:
    """Ask by HTTP and by Kafka in turns."""
    for number in numbers:
        inputs = row(number % 1000)
        if number % 2:
            answer = await door.infer(MODEL, inputs)
            if answer.status != OK:
                raise RuntimeError(f"request {number}: {answer}")
        else:
            await door.send(MODEL, body(inputs), key=str(number).encode())


async def all_answered(door: FrontDoor, count: int) -> None:
    """Wait until the monitor has counted an outcome of every request."""

    async def look() -> bool:
        told = [series["outcomes"] for series in (await door.stats())["models"] if series["model"] == MODEL]
        return told == [{"succeeded": count}]

    await eventually(look, within_s=120, what=f"{count} outcomes at the monitor")


async def soak(stack: RunningStack, requests: int, every: int) -> bool:
    """Whether no service moved too far."""
    marks: list[dict[str, float]] = []
    async with front_door(stack.environment) as door:
        await door.serve(MODEL, uploads.mlp().SerializeToString())
        print(f"{'requests':>9} {'a second':>9} " + " ".join(f"{name:>10}" for name in SERVICES + SERVERS) + "  MiB")
        for done in range(every, requests + 1, every):
            began_s = time.monotonic()
            numbers = iter(range(done - every, done))
            await asyncio.gather(*(send(door, numbers) for _ in range(CALLERS)))
            await all_answered(door, done)
            marks.append(rss_mib(stack))
            rate = every / (time.monotonic() - began_s)
            print(f"{done:>9} {rate:>9.0f} " + " ".join(f"{mib:>10.1f}" for mib in marks[-1].values()), flush=True)
    moved = {name: max(abs(mark[name] / marks[0][name] - 1) for mark in marks) for name in SERVICES}
    print("moved at most: " + ", ".join(f"{name} {share:.1%}" for name, share in moved.items()))
    return max(moved.values()) <= MOST_MOVED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--data-dir", type=Path, help="where the stack keeps its data and logs; kept afterwards")
    asked = parser.parse_args()
    for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):  # nobody else's load or memory
        os.environ.pop(given, None)
    with (
        tempfile.TemporaryDirectory() as scratch,
        local_stack(asked.data_dir or Path(scratch), standard_services(2)) as stack,
    ):
        return 0 if asyncio.run(soak(stack, asked.requests, asked.every)) else 1


if __name__ == "__main__":
    sys.exit(main())
