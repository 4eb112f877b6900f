"""A run with everything in it, and the monitor's report of it: can one tell from that alone what happened when?

    python -m benchmarks.story [--seconds 600] [--out report.html] [--data-dir DIR]

Starts a local stack of its own with two workers and sends steady load over HTTP. After a quarter of the time a second
version is uploaded and promoted; after the second quarter a worker is killed (its supervisor starts it again); in the
last one a crowd sends more than the gateway admits. Then the report of the run is written, and its timeline is held
against what was done: exits with 1 if a deploy, the kill or the overload is missing, or a count differs from what the
callers saw.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from benchmarks.serving import slices
from benchmarks.serving.open_loop import OpenLoad
from services.cli.local import standard_services
from tests.support import uploads
from tests.support.front_door import OK, FrontDoor, body, front_door, row
from tests.support.local import RunningStack, local_stack
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MODEL = f"story-{time.time_ns()}"
"""Another in each run: a data directory may be used again."""
MOST_ROWS = 1_000_000
STEADY_CALLERS, CROWD, CROWD_PER_S = 4, 500, 6000
PAUSE_S = 0.05
UNAVAILABLE = 503


@dataclass
class Seen:
    """What the callers saw, and what was done to the stack."""

    began_s: float = field(default_factory=time.time)
    answers: Counter[int | None] = field(default_factory=Counter)
    done: list[tuple[float, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Note and print what is done to the stack."""
        self.done.append((time.time(), text))
        print(f"{time.time() - self.began_s:6.0f} s  {text}", flush=True)


async def call(door: FrontDoor, seen: Seen, until_s: float, pause_s: float, caller: int) -> None:
    """One caller, until it is late. Each has rows of its own: the same ones from all would be drift, rightly."""
    number = caller * MOST_ROWS
    while time.time() < until_s:
        number += 1
        answer = await door.infer(MODEL, row(number))
        seen.answers[answer.status] += 1
        await asyncio.sleep(pause_s)


async def deploy(door: FrontDoor, seen: Seen) -> None:
    version = await door.upload(MODEL, uploads.mlp((8, 24, 4)).SerializeToString())
    seen.say(f"version {version} uploaded")
    await door.through_the_gate(MODEL, version)
    await door.change(MODEL, f"versions/{version}/promote")
    seen.say(f"version {version} promoted")


def overload(gateway_url: str, seconds: float) -> OpenLoad:
    """More than the gateway admits, whatever becomes of it: callers in this process would be the slower ones."""
    url = urlsplit(gateway_url)
    host, port = str(url.hostname), int(url.port or 80)
    requests = []
    for number in range(64):
        content = body(row(number)).decode()
        head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        requests.append(f"{head}content-length: {len(content)}\r\n\r\n{content}")
    greeting = f"GET /v2/health/live HTTP/1.1\r\nhost: {host}\r\n\r\n"
    return OpenLoad(host, port, requests, CROWD_PER_S, seconds, CROWD, greeting)


async def at(when_s: float, do: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(max(when_s - time.time(), 0))
    await do()


async def live(stack: RunningStack, seen: Seen, seconds: float, out: Path) -> list[str]:
    """The run; what is wrong with its report."""
    async with front_door(stack.environment) as door:
        await door.serve(MODEL, uploads.mlp().SerializeToString())
        seen.say("version 1 answers; steady load begins")
        start_s = time.time()
        end_s, quarter_s = start_s + seconds, seconds / 4

        async def kill() -> None:
            seen.say("worker-1 is killed")
            await stack.child("worker-1").kill()

        async def crowd() -> None:
            seen.say(f"a crowd comes: {CROWD_PER_S} requests a second over {CROWD} connections")
            load = overload(stack.gateway_url, quarter_s / 2)
            found = (await asyncio.to_thread(slices.run, "open_loop", load, {})).measured
            seen.answers.update({int(status): count for status, count in found["statuses"].items()})
            seen.say(f"and leaves; lost: {found['faults']}")

        await asyncio.gather(
            *(call(door, seen, end_s, PAUSE_S, caller) for caller in range(STEADY_CALLERS)),
            at(start_s + quarter_s, lambda: deploy(door, seen)),
            at(start_s + 2 * quarter_s, kill),
            at(start_s + 3 * quarter_s, crowd),
        )
        await counted(door, seen)
    return report(stack.monitor_url, seen, out)


async def counted(door: FrontDoor, seen: Seen) -> None:
    """Wait until the monitor has counted every answer."""

    async def look() -> bool:
        series = [each["outcomes"] for each in (await door.stats())["models"] if each["model"] == MODEL]
        return bool(sum(outcomes.get("succeeded", 0) for outcomes in series) >= seen.answers[OK])

    await eventually(look, within_s=120, what=f"{seen.answers[OK]} outcomes at the monitor")


def report(monitor: str, seen: Seen, out: Path) -> list[str]:
    """Write the report; what it does not tell, or tells otherwise."""
    span = {"from": f"{seen.began_s:.0f}", "to": f"{time.time() + 20:.0f}"}
    with httpx.Client(base_url=monitor, timeout=120) as http:
        time.sleep(10)  # samples of the last seconds are still on their way
        out.write_bytes(http.get("/v1/report", params=span).raise_for_status().content)
        events = http.get("/v1/timeline", params=span).raise_for_status().json()["events"]
        series = http.get(f"/v1/models/{MODEL}/series", params=span).raise_for_status().json()
    print(f"\n{out} ({out.stat().st_size:,} bytes) says:")
    for event in events:
        print(f"{event['at'] - seen.began_s:6.0f} s  {event['kind']:<9} {event['text']}")
    return judge(events, series["totals"], seen)


def judge(events: list[dict[str, Any]], totals: dict[str, Any], seen: Seen) -> list[str]:
    """What an operator could not tell."""
    wrong = []
    told = [(event["kind"], event["text"]) for event in events]
    for kind, text in (("deploy", "version 2 was promoted"), ("restart", "worker-1"), ("overload", "refused")):
        if not any(each == kind and text in what for each, what in told):
            wrong.append(f"no {kind} with {text!r} is told")
    if totals["succeeded"] != seen.answers[OK]:
        wrong.append(f"{totals['succeeded']} succeeded by the report, {seen.answers[OK]} by the callers")
    if not seen.answers[UNAVAILABLE]:
        wrong.append("nobody was refused: there was no overload")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--data-dir", type=Path, help="where the stack keeps its data and logs; kept afterwards")
    asked = parser.parse_args()
    for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):  # nobody else's worker is killed
        os.environ.pop(given, None)
    with tempfile.TemporaryDirectory() as scratch:
        own = local_stack(
            asked.data_dir or Path(scratch),
            standard_services(2),
            service_env={"AIAAS_TIME_BUDGET_S": "5", "AIAAS_MAX_IN_FLIGHT_PER_MODEL": "16"},
        )
        with own as stack:
            seen = Seen()
            wrong = asyncio.run(live(stack, seen, asked.seconds, asked.out))
    print(f"\nanswers by status: {dict(seen.answers)}")
    print("\n".join(wrong) or "the report tells all of it")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
