"""`python -m benchmarks.serving`: what is measured, and with what; see the package for how."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serving import machine, models, report
from benchmarks.serving.measure import Plan, measure
from benchmarks.serving.rows import Row, summaries
from benchmarks.serving.systems import environments
from benchmarks.serving.systems.direct import Direct
from benchmarks.serving.systems.mlserver import MlServer, MlServerKafka
from benchmarks.serving.systems.platform import OverHttp, OverKafka, Platform
from benchmarks.serving.systems.single import Bare, BentoMl, LitServe, Mosec

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.serving.systems import System

BENCH_DIR = Path(__file__).parents[2] / ".bench"
OURS = ("http", "kafka", "http-2", "kafka-2")
PEERS = ("mosec", "mlserver", "mlserver-kafka", "litserve", "bentoml")
SYSTEMS = ("onnxruntime", "bare", *OURS, *PEERS)


QUICK = {"systems": "bare,http", "models": "mlp", "repeats": 2, "warmup_s": 1.0, "window_s": 2.0}
THOROUGH = {
    "systems": ",".join(SYSTEMS),
    "models": ",".join(models.NAMES),
    "repeats": 3,
    "warmup_s": 1.5,
    "window_s": 3.0,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("--systems", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--models", help=f"of {', '.join(models.NAMES)}")
    parser.add_argument("--concurrency", default="1,16,64,256", help="callers at a time")
    parser.add_argument("--kafka-outstanding", type=int, default=2048, help="by Kafka alone, one more concurrency")
    parser.add_argument("--kafka-beforehand", type=int, default=20_000, help="requests produced, then drained")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--warmup-s", type=float)
    parser.add_argument("--window-s", type=float)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of every system")
    parser.add_argument("--gateways", type=int, default=2, help="gateway processes of our stacks, on one port")
    parser.add_argument("--quick", action="store_true", help=f"instead of the defaults: {QUICK}")
    parser.add_argument("--running", type=Path, metavar="DATA_DIR", help="measure the stack that `aiaas up` runs there")
    parser.add_argument("--data-dir", type=Path, help="where our stacks keep data and logs, kept afterwards")
    parser.add_argument("--json", type=Path, default=BENCH_DIR / "serving.json", help="where the JSON goes")
    asked = parser.parse_args()
    for name, value in (QUICK if asked.quick else THOROUGH).items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    return asked


def build(names: list[str], asked: argparse.Namespace, directory: Path, undo: ExitStack) -> list[System]:
    """The systems by name; ways to the same stack share it."""
    platforms: dict[int, Platform] = {}

    def platform(workers: int) -> Platform:
        if workers not in platforms:
            own = Platform(
                directory / f"stack-{workers}",
                workers=workers,
                gateways=asked.gateways,
                threads=asked.threads,
                patient=True,
            )
            platforms[workers] = Platform.running(asked.running) if asked.running else own
        return platforms[workers]

    made: dict[str, Callable[[], System]] = {
        "onnxruntime": lambda: Direct(asked.threads),
        "bare": lambda: Bare(asked.threads, BENCH_DIR),
        "http": lambda: OverHttp(platform(1), "http"),
        "kafka": lambda: OverKafka(platform(1), "kafka"),
        "http-2": lambda: OverHttp(platform(2), "http"),
        "kafka-2": lambda: OverKafka(platform(2), "kafka"),
        "mosec": lambda: Mosec(asked.threads, BENCH_DIR),
        "mlserver": lambda: MlServer(asked.threads, BENCH_DIR),
        "mlserver-kafka": lambda: MlServerKafka(asked.threads, BENCH_DIR, platform(1)),
        "litserve": lambda: LitServe(asked.threads, BENCH_DIR),
        "bentoml": lambda: BentoMl(asked.threads, BENCH_DIR),
    }
    if unknown := [name for name in names if name not in made]:
        raise SystemExit(f"no system is called {', '.join(unknown)}: {', '.join(made)}")
    built = [made[name]() for name in names]
    for each in platforms.values():
        each.enter()
        undo.callback(each.leave)
    return built


def _report(rows: list[Row], asked: argparse.Namespace, about: dict[str, Any], missing: dict[str, str]) -> None:
    found = summaries(rows, reference="bare", ceiling=Direct.name)
    notes = {
        "intra-op threads": asked.threads,
        "warm-up s": asked.warmup_s,
        "window s": asked.window_s,
        "peers": environments.versions(BENCH_DIR / "peers"),
        "arguments": " ".join(sys.argv[1:]),
    }
    report.print_all(found, about, missing, notes)
    report.write(asked.json, rows, found, about, missing, notes)
    print(f"{asked.json} has every slice")


def main() -> int:
    asked = arguments()
    for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):  # servers of its own: they are stopped
        os.environ.pop(given, None)
    began_s = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - began_s:5.0f} s] {what}", flush=True)

    BENCH_DIR.mkdir(exist_ok=True)
    about, missing, rows = machine.describe(), dict[str, str](), list[Row]()
    plan = Plan(
        tuple(map(int, asked.concurrency.split(","))),
        asked.repeats,
        asked.warmup_s,
        asked.window_s,
        asked.kafka_outstanding,
        asked.kafka_beforehand,
    )
    try:
        with ExitStack() as undo:
            directory = asked.data_dir or Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="aiaas-bench-")))
            systems = build(asked.systems.split(","), asked, directory, undo)
            for name in asked.models.split(","):
                model = models.load(name, BENCH_DIR)
                chosen = [each for each in systems if model.slow or not isinstance(each, Direct)]
                rows += measure(model, chosen, plan.of(model), say, missing)
    finally:  # what was measured is not lost with what failed
        if rows:
            _report(rows, asked, about, missing)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
