"""Idle: what does a stack cost that has many models loaded and nothing to do?

    python -m benchmarks.idle [--models 50] [--seconds 30] [--data-dir DIR]

Uploads small MLPs through the gateway, waits until each has been asked once and all is quiet, then reads the CPU time
of every process over a while. Exits with 1 if all but Kafka use more than a tenth of one core together.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.serving import models
from benchmarks.serving.systems.platform import Platform

BENCH_DIR = Path(__file__).parents[1] / ".bench"
MOST_OF_A_CORE = 0.10
QUIET_S = 15.0
"""After the last upload: several heartbeats, metrics and probes."""


def shares(platform: Platform, seconds: float) -> dict[str, float]:
    """The share of one core that each process and its descendants used."""
    before = {name: tree.cpu_s() for name, tree in platform.trees.items()}
    began_s = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    return {name: (tree.cpu_s() - before[name]) / took_s for name, tree in platform.trees.items()}


def load(platform: Platform, count: int) -> None:
    """Upload, and ask each once, so that each is loaded."""
    one = models.load("mlp", BENCH_DIR)
    random = np.random.default_rng(7)
    for number in range(count):
        name = f"idle-{number}"
        platform.upload(name, models.mlp(random))
        platform.await_answers(name, one, 1)
        if number % 10 == 9:
            print(f"{number + 1} models are loaded", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--data-dir", type=Path, help="where the stack keeps data and logs; kept, and used again")
    asked = parser.parse_args()
    for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):
        os.environ.pop(given, None)
    BENCH_DIR.mkdir(exist_ok=True)
    with ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="aiaas-idle-")))
        platform = Platform(asked.data_dir or scratch, workers=1, threads=1)
        undo.callback(platform.leave)
        platform.enter()
        load(platform, asked.models)
        time.sleep(QUIET_S)
        found = shares(platform, asked.seconds)
    for name, share in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{name:<12} {share:7.2%}")
    ours = sum(share for name, share in found.items() if name != "kafka")
    print(f"all but Kafka: {ours:.2%} of one core; at most {MOST_OF_A_CORE:.0%} are allowed")
    return 1 if ours > MOST_OF_A_CORE else 0


if __name__ == "__main__":
    sys.exit(main())
