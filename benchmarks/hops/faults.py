"""What happens to the outcome log when a worker is killed, ended, or stopped and continued (the zombie).

Two workers share four request partitions under a steady stream of requests. The victim stops or dies mid-stream, at a
named point of its turn or at any moment. A reader follows the log throughout; at the end every request must have one
accepted outcome, without a gap, and repeats must agree with the first.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.hops import kit
from benchmarks.hops.ledger import Ledger, follow, settle
from benchmarks.hops.members import Gateway, Member, Stage, member

RATE_PER_S = 150
WARM_S = 2.0
ZOMBIE_S = 15.0
KILLED_S = 11.0
AWAKE_S = 10.0
RUN_MS = "40"
GONE, AGAIN = "nobody restarts it", "restarted at once"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault. `at` is a point of the worker's turn; None means any moment, from outside."""

    name: str
    signal: str
    static: bool
    at: str | None = None
    successor: bool = False


@dataclass(slots=True)
class Finding:
    """What one run showed."""

    recovered_s: float | None
    requests: int
    missing: int
    ledger: Ledger
    events: Counter[str] = field(default_factory=Counter)
    noise: list[str] = field(default_factory=list)


KILLS = [
    Scenario(f"SIG{how}, {'static' if static else 'dynamic'}, {then}", how, static=static, successor=then == AGAIN)
    for how in ("KILL", "TERM")
    for static in (False, True)
    for then in (GONE, AGAIN)
]
ZOMBIES = [
    Scenario(f"zombie, {'static' if static else 'dynamic'}, {at or 'any moment'}", "STOP", static=static, at=at)
    for static in (False, True)
    for at in ("before_reply", "before_append", "appending", "before_commit", None)
]
TWINS = [Scenario("zombie, static, replaced under its id", "STOP", static=True, at="appending", successor=True)]


def flags(scenario: Scenario, name: str) -> list[str]:
    """The worker's options: a run of 40 ms, its static id, the point it is armed for."""
    chosen = ["--run-ms", RUN_MS]
    chosen += ["--instance-id", name] if scenario.static else []
    return chosen + (["--at", scenario.at, "--signal", scenario.signal] if scenario.at else [])


async def strike(scenario: Scenario, victim: Member) -> float:
    """Make the fault happen; the moment it did, in monotonic milliseconds."""
    if scenario.at:
        victim.process.send_signal(signal.SIGUSR1)
        return float((await victim.said("signalling"))["at_ms"])
    victim.process.send_signal(signal.Signals[f"SIG{scenario.signal}"])
    return kit.now_ms()


async def run(servers: kit.Servers, scenario: Scenario) -> Finding:
    """One run of one scenario."""
    stage = await Stage.create(servers)
    ledger = Ledger()
    async with contextlib.AsyncExitStack() as running:
        gateway = await running.enter_async_context(Gateway(stage))
        members = [await running.enter_async_context(member(stage, n, *flags(scenario, n))) for n in ("w0", "w1")]
        await _share(members)
        following = asyncio.create_task(follow(stage, ledger))
        async with gateway.asking(RATE_PER_S):
            await asyncio.sleep(WARM_S)
            victim = members[0]
            orphans = [f["partitions"] for f in victim.facts if f["event"] == "assigned"][-1]
            struck_ms = await strike(scenario, victim)
            if scenario.signal == "TERM":
                await victim.process.wait()
            if scenario.successor:
                members.append(await running.enter_async_context(member(stage, "w0", *flags(scenario, "w0"))))
            await asyncio.sleep(ZOMBIE_S if scenario.signal == "STOP" else KILLED_S)
            if scenario.signal == "STOP":
                victim.process.send_signal(signal.SIGCONT)
                await asyncio.sleep(AWAKE_S)
        missing = await settle(stage, ledger)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    counted = Counter(f"{m.name}: {f['event']}" for m in members for f in m.facts if f["at_ms"] > struck_ms)
    counted.update(f"{m.name}: {error}" for m in members for error in m.errors())
    finding = Finding(
        ledger.first_after(struck_ms + 100, orphans), sum(h + 1 for h in ledger.high.values()), missing, ledger
    )
    counted.update(gateway.errors)
    finding.events = counted
    finding.noise = [line for m in members for line in m.noise]
    return finding


async def _share(members: list[Member]) -> None:
    """Wait until both members own two partitions."""
    async with asyncio.timeout(60):
        while True:
            owned = [[f["partitions"] for f in m.facts if f["event"] == "assigned"][-1:] for m in members]
            if all(len(parts) == 1 and len(parts[0]) == 2 for parts in owned):
                return
            await asyncio.sleep(0.05)


async def main(servers: kit.Servers, scenarios: list[Scenario], repeats: int, *, verbose: bool = False) -> None:
    """Run every scenario `repeats` times, alternated; print what the log looked like."""
    found: dict[str, list[Finding]] = {scenario.name: [] for scenario in scenarios}
    for _ in range(repeats):
        for scenario in scenarios:
            finding = await run(servers, scenario)
            found[scenario.name].append(finding)
            if verbose:
                print(scenario.name, finding.recovered_s, finding.missing, finding.ledger.gaps, dict(finding.events))
                print("\n".join(finding.noise[:40]), flush=True)
    kit.table(
        f"Two workers, four request partitions, {RATE_PER_S} requests/s, {repeats} runs each",
        ["fault", "seconds to the orphans' first new outcomes", "requests", "missing", "gaps", "disagree", "repeats"],
        [
            (
                name,
                kit.across([f.recovered_s for f in findings if f.recovered_s is not None] or [float("nan")]),
                sum(f.requests for f in findings),
                sum(f.missing for f in findings),
                sum(f.ledger.gaps for f in findings),
                sum(f.ledger.disagreements for f in findings),
                [f.ledger.repeats for f in findings],
            )
            for name, findings in found.items()
        ],
    )
    kit.table(
        "What the workers met after the fault",
        ["fault", "facts"],
        [
            (name, "; ".join(f"{count}x {what}" for what, count in sum((f.events for f in fs), Counter()).items()))
            for name, fs in found.items()
        ],
    )
