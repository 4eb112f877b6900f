"""The full storm: thousands of requests while workers, Redis and the broker are killed, stopped and restarted.

    python -m benchmarks.chaos [--requests 10000] [--rate 150] [--data-dir DIR]

Starts a local stack of its own, sends half of the requests over HTTP and half straight from Kafka while five workers
are killed, one is stopped beyond its session timeout and continued, and Redis and the broker are killed once each; then
holds every answer, result and receipt against each other, against ONNX Runtime and against the monitor. Exits with 1 if
anything is wrong, and says what. `tests/e2e/test_chaos.py` is the same at a smaller size.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime

from services.cli.local import standard_services
from tests.support import uploads
from tests.support.audit import Audit, audit
from tests.support.front_door import front_door
from tests.support.local import RunningStack, local_stack
from tests.support.storm import THE_FULL_STORM, storm

MODEL = f"storm-{time.time_ns()}"
"""Another in each run: a data directory may be used again."""


async def rage(stack: RunningStack, requests: int, rate_per_s: float) -> Audit:
    content = uploads.mlp().SerializeToString()
    session = onnxruntime.InferenceSession(content)
    async with front_door(stack.environment) as door:
        await door.serve(MODEL, content)
        raged = await storm(stack, door, MODEL, requests=requests, rate_per_s=rate_per_s, disturbances=THE_FULL_STORM)
        print("\n".join(raged.log), flush=True)
        began_s = time.monotonic()
        found = await audit(raged, lambda inputs: session.run(None, inputs)[0])
        print(f"audited in {time.monotonic() - began_s:.0f} s")
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second")
    parser.add_argument("--data-dir", type=Path, help="where the stack keeps its data and logs; kept afterwards")
    asked = parser.parse_args()
    for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):  # servers of its own: they are killed
        os.environ.pop(given, None)
    with tempfile.TemporaryDirectory() as scratch:
        own = local_stack(
            asked.data_dir or Path(scratch),
            standard_services(2),
            service_env={"AIAAS_MIN_GAIN": "1000", "AIAAS_TIME_BUDGET_S": "5"},  # fp32 serves: it has one right answer
            local_kafka="apache",  # the embedded broker keeps nothing when it is killed
        )
        with own as stack:
            found = asyncio.run(rage(stack, asked.requests, asked.rate))
    print(f"{found.requests} requests, {found.outcomes} outcomes; HTTP answers {dict(found.answers)}")
    print(f"{found.repeats} repeats in the log, {found.reexecuted} requests run again after a crash")
    print(f"{found.batches} whole batches compared bit by bit")
    print("\n".join(found.violations[:50]) or "nothing is wrong")
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
