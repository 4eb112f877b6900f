"""Hop 1 (produce, fetch) and hop 2 (Redis reply), variant beside variant: repeated, alternated, tabulated."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from benchmarks.hops import kit


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting that differs from the base, under the name its row has."""

    name: str
    producer: dict[str, Any] = field(default_factory=dict)
    consumer: dict[str, Any] = field(default_factory=dict)
    loop: str = "uvloop"
    environment: dict[str, str] = field(default_factory=dict)


VARIANTS = [
    Variant("base: uvloop, idempotent, linger 0, fetch_max_wait 500 ms, CRC checked"),
    Variant("asyncio's loop", loop="asyncio"),
    Variant("no C extension", environment={"AIOKAFKA_NO_EXTENSIONS": "1"}),
    Variant("idempotence off (acks=all)", producer={"enable_idempotence": False}),
    Variant("linger_ms 2", producer={"linger_ms": 2}),
    Variant("fetch_max_wait_ms 10", consumer={"fetch_max_wait_ms": 10}),
    Variant("fetch_max_wait_ms 5000", consumer={"fetch_max_wait_ms": 5000}),
    Variant("check_crcs off", consumer={"check_crcs": False}),
]


def probe(servers: kit.Servers, what: str, *options: str, environment: dict[str, str] | None = None) -> Any:
    """Run one probe in its own process and return its JSON."""
    command = [sys.executable, "-m", "benchmarks.hops.probe", what, "--kafka", servers.kafka, "--redis", servers.redis]
    done = subprocess.run(
        [*command, *options], env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"probe {what} {options} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def first_hop(servers: kit.Servers, repeats: int) -> None:
    """Every variant once per round, so that the machine's other work falls on all of them alike."""
    results: dict[str, list[Any]] = {variant.name: [] for variant in VARIANTS}
    for _ in range(repeats):
        for variant in VARIANTS:
            options = ["--loop", variant.loop, "--producer", json.dumps(variant.producer)]
            options += ["--consumer", json.dumps(variant.consumer)]
            results[variant.name].append(probe(servers, "produce", *options, environment=variant.environment))
    base = results[VARIANTS[0].name]

    def ratio(name: str, key: str) -> str:
        """The variant against the base, round by round."""
        return kit.across([mine[key] / theirs[key] for mine, theirs in zip(results[name], base, strict=True)])

    kit.table(
        f"Hop 1: send to getmany, 1 KB records, {repeats} rounds (latency ms: min / median / p99 of all rounds)",
        ["variant", "alone", "64 at once", "records/s with 64", "records/s pipelined", "against base", "CPU µs/record"],
        [
            (
                name,
                kit.spread([ms for round_ in rounds for ms in round_["alone_ms"]]),
                kit.spread([ms for round_ in rounds for ms in round_["together_ms"]]),
                kit.across([round_["together_per_s"] for round_ in rounds]),
                kit.across([round_["pipelined_per_s"] for round_ in rounds]),
                ratio(name, "pipelined_per_s"),
                kit.across([round_["pipelined_cpu_us"] for round_ in rounds]),
            )
            for name, rounds in results.items()
        ],
    )


def second_hop(servers: kit.Servers, repeats: int) -> None:
    """One reply, and 16 and 64 replies in one pipeline, on both loops."""
    cells = [(loop, batch) for batch in (1, 16, 64) for loop in ("uvloop", "asyncio")]
    results: dict[tuple[str, int], list[Any]] = {cell: [] for cell in cells}
    for _ in range(repeats):
        for loop, batch in cells:
            results[loop, batch].append(probe(servers, "reply", "--loop", loop, "--batch", str(batch)))
    kit.table(
        f"Hop 2: SET NX GET EX of 300 B pipelined + one PUBLISH, until the subscriber wakes, {repeats} rounds",
        ["loop", "replies per pipeline", "ms: min / median / p99", "replies/s"],
        [
            (
                loop,
                batch,
                kit.spread([ms for round_ in rounds for ms in round_["reply_ms"]]),
                kit.across([round_["replies_per_s"] for round_ in rounds]),
            )
            for (loop, batch), rounds in results.items()
        ],
    )
