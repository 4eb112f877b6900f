"""The whole loop without a model, with and without the ordered outcome log: what the log costs."""

import asyncio
from typing import Any

from benchmarks.hops import kit
from benchmarks.hops.members import Gateway, Stage, member

MODES = {
    "reply only": ["--append", "none", "--no-commit"],
    "reply, commit": ["--append", "none"],
    "reply, outcomes by send, commit": ["--append", "send"],
    "reply, outcomes by send_batch, commit": ["--append", "batch"],
}
ALONE, TOGETHER, BACKLOG = 300, 6_400, 12_000


async def latency(servers: kit.Servers, mode: list[str]) -> dict[str, Any]:
    """Ask one at a time, then 64 at once."""
    stage = await Stage.create(servers)
    async with Gateway(stage) as gateway, member(stage, "w0", *mode) as worker:
        await worker.said("assigned")
        for number in range(50):
            await gateway.ask(number)
        alone = [await gateway.ask(number) for number in range(1000, 1000 + ALONE)]
        numbers = iter(range(10_000, 10_000 + TOGETHER))
        together: list[float] = []

        async def lane() -> None:
            together.extend([await gateway.ask(number) for number in numbers])

        started_ms = kit.now_ms()
        await asyncio.gather(*(lane() for _ in range(64)))
        per_s = TOGETHER / (kit.now_ms() - started_ms) * 1000
    return {"alone_ms": alone, "together_ms": together, "together_per_s": per_s}


async def backlog(servers: kit.Servers, mode: list[str]) -> dict[str, Any]:
    """Produce everything first, then let one worker drain it: its rate and its CPU, nothing else running."""
    stage = await Stage.create(servers)
    async with kit.producer(servers) as producer:
        for number in range(BACKLOG):
            await producer.send(stage.topic, b"x" * 1000, key=b"%d" % number)
        await producer.flush()
    async with member(stage, "w0", *mode, "--report-at", str(BACKLOG)) as worker:
        return await worker.said("drained")


async def main(servers: kit.Servers, repeats: int) -> None:
    """All modes once per round; print the tables."""
    drained: dict[str, list[Any]] = {mode: [] for mode in MODES}
    asked: dict[str, list[Any]] = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for mode, flags in MODES.items():
            drained[mode].append(await backlog(servers, flags))
            asked[mode].append(await latency(servers, flags))
    base = drained["reply, commit"]
    kit.table(
        f"The loop, one gateway, one worker, polls of at most 64 records, {repeats} rounds (ms: min / median / p99)",
        ["worker does", "alone", "64 at once", "requests/s with 64"],
        [
            (
                mode,
                kit.spread([ms for round_ in rounds for ms in round_["alone_ms"]]),
                kit.spread([ms for round_ in rounds for ms in round_["together_ms"]]),
                kit.across([round_["together_per_s"] for round_ in rounds]),
            )
            for mode, rounds in asked.items()
        ],
    )
    kit.table(
        f"One worker drains a backlog of {BACKLOG} requests, {repeats} rounds",
        ["worker does", "requests/s", "against `reply, commit`", "worker CPU µs/request"],
        [
            (
                mode,
                kit.across([round_["per_s"] for round_ in rounds]),
                kit.across([m["per_s"] / b["per_s"] for m, b in zip(rounds, base, strict=True)]),
                kit.across([round_["cpu_us"] for round_ in rounds]),
            )
            for mode, rounds in drained.items()
        ],
    )
