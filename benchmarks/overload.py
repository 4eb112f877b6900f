"""Three times the capacity: are the rejected told at once, are the accepted served as before, and is it over after?

    python -m benchmarks.overload [--times 3] [--seconds 10] [--running DATA_DIR]

Measures the capacity first: the most that callers who wait for their answers get through, and their p99. Then offers a
multiple of it at a fixed rate, for a moment and then for the time that counts, watches what becomes of each second's
requests, and asks for the capacity's load again five seconds later. Exits with 1 if a target of `judge` is missed, and
says which.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from benchmarks.serving import models, slices
from benchmarks.serving.closed_loop import Load
from benchmarks.serving.open_loop import OpenLoad
from benchmarks.serving.systems.platform import OverHttp, Platform
from benchmarks.serving.warming import warm

BENCH_DIR = Path(__file__).parents[1] / ".bench"
CALLERS = (16, 64, 256)
SERVICES = ("gateway", "worker-1", "optimizer", "monitor")
WARMUP_S, WINDOW_S = 2.0, 4.0
REJECTED_WITHIN_MS = 50.0
MOST_SLOWER = 2.0
MOST_GROWN = 0.10
BACK_AFTER_S = 5.0
FIRST_S = 2.0
CONNECTED_S = 4.0
"""What a service takes once, for so many new connections, it has by then: memory must be flat from there on."""
BACK_TO = 0.8
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Capacity:
    """What callers who wait for their answers get through."""

    callers: int
    per_s: float
    p99_ms: float


def measured(way: OverHttp, callers: int) -> Capacity:
    """One closed-loop slice."""
    target = way.target()
    requests = [request.decode("latin-1") for request in target.requests()]
    done = slices.run("closed_loop", Load(target.host, target.port, requests, callers, WARMUP_S, WINDOW_S), {})
    found = done.measured
    return Capacity(callers, found["statuses"].get("200", 0) / found["window_s"], found["p99_ms"])


def rss_mib(platform: Platform) -> dict[str, float]:
    """Resident memory of our services."""
    return {name: platform.trees[name].rss_bytes() / _MIB for name in SERVICES if name in platform.trees}


def overload(way: OverHttp, rate_per_s: float, seconds: float, connections: int) -> dict[str, Any]:
    """One open-loop slice, second by second on the terminal."""
    target = way.target()
    requests = [request.decode("latin-1") for request in target.requests()]
    greeting = f"GET /v2/health/live HTTP/1.1\r\nhost: {target.host}\r\n\r\n"
    load = OpenLoad(target.host, target.port, requests, rate_per_s, seconds, connections, greeting)
    found = slices.run("open_loop", load, {}).measured
    timed = f"{'p50 ms':>8} {'p99 ms':>8}"
    print(f"{'second':>6} {'accepted':>9} {timed} {'rejected':>9} {timed} {'max ms':>8}")
    for number, each in enumerate([*found["seconds"], found["whole"]]):
        name = "all" if number == len(found["seconds"]) else str(number)
        accepted = f"{each['accepted']:>9} {each['accepted_p50_ms']:>8.1f} {each['accepted_p99_ms']:>8.1f}"
        rejected = f"{each['rejected']:>9} {each['rejected_p50_ms']:>8.1f} {each['rejected_p99_ms']:>8.1f}"
        print(f"{name:>6} {accepted} {rejected} {each['rejected_max_ms']:>8.1f}")
    print(f"statuses {found['statuses']}, lost {found['faults']}")
    cpu_share, late_ms = found["generator_cpu_share"], found["sent_late_p99_ms"]
    print(f"the generator: {cpu_share:.0%} of a core, its requests {late_ms:.1f} ms late (p99)")
    return found


def judge(
    capacity: Capacity, found: dict[str, Any], before: dict[str, float], after: dict[str, float], back: Capacity
) -> list[str]:
    """The targets that were missed."""
    whole, missed = found["whole"], []
    if whole["rejected_p99_ms"] > REJECTED_WITHIN_MS:
        missed.append(f"rejections took {whole['rejected_p99_ms']:.1f} ms (p99), not {REJECTED_WITHIN_MS:g}")
    if not whole["rejected"]:
        missed.append("nothing was rejected")
    if found["without_retry_after"]:
        missed.append(f"{found['without_retry_after']} rejections had no Retry-After")
    if whole["accepted_p99_ms"] > MOST_SLOWER * capacity.p99_ms:
        missed.append(f"accepted p99 {whole['accepted_p99_ms']:.1f} ms, at capacity {capacity.p99_ms:.1f} ms")
    if unknown := {code: n for code, n in found["statuses"].items() if code not in {"200", "429", "503"}}:
        missed.append(f"other answers: {unknown}")
    if found["faults"]:
        missed.append(f"lost: {found['faults']}")
    for name, mib in after.items():
        if mib > before[name] * (1 + MOST_GROWN):
            missed.append(f"{name} grew from {before[name]:.0f} to {mib:.0f} MiB")
    if back.per_s < BACK_TO * capacity.per_s or back.p99_ms > MOST_SLOWER * capacity.p99_ms:
        missed.append(f"{BACK_AFTER_S:g} s after: {back.per_s:.0f}/s, p99 {back.p99_ms:.1f} ms")
    return missed


def storm(way: OverHttp, platform: Platform, times: float, seconds: float, connections: int) -> list[str]:
    """Capacity, overload, capacity again, of a stack whose broker is warm."""
    if how := warm(platform.trees.values(), lambda: [measured(way, callers) for callers in CALLERS]):
        print(how)
    capacity = max((measured(way, callers) for callers in CALLERS), key=lambda each: each.per_s)
    print(f"capacity: {capacity.per_s:.0f}/s with {capacity.callers} callers, p99 {capacity.p99_ms:.1f} ms")
    print(f"offering {times:g} times that over {connections} connections, for {FIRST_S:g} s to get used to it")
    overload(way, times * capacity.per_s, FIRST_S, connections)
    print(f"and for {seconds:g} s")
    before: dict[str, float] = {}
    taking = Timer(CONNECTED_S, lambda: before.update(rss_mib(platform)))
    taking.start()
    found = overload(way, times * capacity.per_s, seconds, connections)
    taking.join()
    after = rss_mib(platform)
    print("MiB before and after: " + ", ".join(f"{name} {before[name]:.0f} {mib:.0f}" for name, mib in after.items()))
    time.sleep(BACK_AFTER_S - WARMUP_S)
    back = measured(way, capacity.callers)
    print(f"{BACK_AFTER_S:g} s after: {back.per_s:.0f}/s, p99 {back.p99_ms:.1f} ms")
    return judge(capacity, found, before, after, back)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=3.0, help="of the capacity")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of a run")
    parser.add_argument("--running", type=Path, metavar="DATA_DIR", help="the stack that `aiaas up` runs there")
    asked = parser.parse_args()
    for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):
        os.environ.pop(given, None)
    BENCH_DIR.mkdir(exist_ok=True)
    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="aiaas-overload-")))
        own = Platform(scratch, workers=1, threads=asked.threads)
        platform = Platform.running(asked.running) if asked.running else own
        way = OverHttp(platform, "http")
        undo.callback(way.stop)
        way.start(models.load("mlp", BENCH_DIR))
        missed = storm(way, platform, asked.times, asked.seconds, asked.connections)
    print("\n".join(f"missed: {each}" for each in missed) or "every target was met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
