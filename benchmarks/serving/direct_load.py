"""ONNX Runtime and nothing else, at one batch size: the ceiling of what any server around it can do.

A process of its own (`python -m benchmarks.serving.direct_load`) that reads a `DirectLoad` as JSON and speaks like the
load generators. Rows are decoded before and outputs are not encoded; one run follows the other.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.serving.closed_loop import SAMPLES, Measured, quantile
from benchmarks.serving.servers.onnx_model import OnnxModel, feeds


@dataclass(frozen=True, slots=True)
class DirectLoad:
    """What to run: rows of the bodies, `batch` at a time."""

    path: str
    threads: int
    bodies: list[str]
    batch: int
    warmup_s: float
    window_s: float


def run(load: DirectLoad) -> Measured:
    """Warm up, then run until the window is over; a run's time is that of each of its rows."""
    model = OnnxModel(load.path, load.threads)
    rows = [feeds(body.encode()) for body in load.bodies]
    numbers = [at % len(rows) for at in range(load.batch)]
    batch = {name: np.concatenate([rows[number][name] for number in numbers]) for name in model.inputs}
    _repeat(model, batch, load.warmup_s)
    print("measuring", flush=True)
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    times_s = _repeat(model, batch, load.window_s)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    print("measured", flush=True)
    outputs = model.run(batch)
    samples = {
        number: model.answer([output[at : at + 1] for output in outputs]).decode()
        for at, number in enumerate(numbers)
        if number < SAMPLES
    }
    times_ms = sorted(1000 * each for each in times_s)
    return Measured(
        window_s=took_s,
        answered=len(times_s) * load.batch,
        statuses={"200": len(times_s) * load.batch},
        faults={},
        p50_ms=quantile(times_ms, 0.50),
        p99_ms=quantile(times_ms, 0.99),
        mean_ms=sum(times_ms) / len(times_ms),
        generator_cpu_share=cpu_s / took_s,
        samples=samples,
    )


def _repeat(model: OnnxModel, batch: dict[str, Any], for_s: float) -> array[float]:
    """At least one run; the seconds that each took."""
    times_s, until_s = array("d"), time.perf_counter() + for_s
    while not times_s or time.perf_counter() < until_s:
        began_s = time.perf_counter()
        model.run(batch)
        times_s.append(time.perf_counter() - began_s)
    return times_s


def main() -> None:
    print(json.dumps(asdict(run(DirectLoad(**json.load(sys.stdin))))), flush=True)


if __name__ == "__main__":
    main()
