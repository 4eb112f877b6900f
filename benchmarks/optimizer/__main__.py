"""The table of all candidates: what the optimizer makes of real models, and why it takes what it takes.

    python -m benchmarks.optimizer [--models NAME…] [--budget-s 300] [--directory .bench] [--out docs/optimizer.md]

Each model goes through the optimizer's own jobs and sandbox, with a store in a temporary directory and no Kafka. The
tables are printed, and with `--out` put into that file between its two marks. Exits with 1 if a model is not ready, or
if what was chosen is slower than fp32.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.optimizer.models import MODELS
from benchmarks.optimizer.report import outcome, put, table
from services.optimizer.confined import open_sandbox
from services.optimizer.job import Jobs
from services.optimizer.plan import Means
from services.optimizer.settings import OptimizerSettings
from services.optimizer.task import Hooks, Task
from services.optimizer.workspace import sweep
from shared.artifacts import ArtifactStore
from shared.events import ModelReady, StepFinished
from shared.optimization import DataFile, Optimization, Policy
from shared.registry import Version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.optimizer.models import Model
    from services.optimizer.progress import Progressed
    from shared.artifacts import Artifact
    from shared.events import AttemptEvent, FormatRecognised


async def optimized(jobs: Jobs, name: str, model: Model, budget_s: float) -> tuple[tuple[AttemptEvent, ...], float]:
    """What the optimizer says of an upload, and how long that took."""
    data, evaluation = await _stored(jobs.store, model.data), await _stored(jobs.store, model.evaluation)
    options = Optimization(policy=Policy(time_budget_s=budget_s), data=data, evaluation=evaluation)
    artifact = await _put(jobs.store, model.content)
    version = Version(name, 1, "u", artifact, "onnx", None, 0, optimization=options, attempt=1, owner="o")

    async def on_progress(progressed: Progressed) -> None:
        print(f"  {progressed.fraction:4.0%} {progressed.step}", file=sys.stderr, flush=True)

    async def record(step: StepFinished | FormatRecognised) -> None:
        done = f"{step.step}: {step.seconds:.1f} s" if isinstance(step, StepFinished) else step.format
        print(f"       {done}", file=sys.stderr, flush=True)

    began_s = time.monotonic()
    events = await jobs.run(Task(version), Hooks(on_progress, record))
    return events, time.monotonic() - began_s


async def _stored(store: ArtifactStore, content: bytes | None) -> DataFile | None:
    return None if content is None else DataFile(artifact=await _put(store, content))


async def _put(store: ArtifactStore, content: bytes) -> Artifact:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    return await store.put_stream(chunks(), limit_bytes=len(content))


async def run(names: Sequence[str], budget_s: float, directory: Path) -> tuple[str, bool]:
    """The tables, and whether all is as it should be."""
    parts, fine = [], True
    with tempfile.TemporaryDirectory() as scratch:
        settings = OptimizerSettings(
            scratch_dir=Path(scratch), artifact_store_url=f"file://{scratch}/store", instance="benchmark"
        )
        sweep(settings)
        sandbox, probed = await open_sandbox(settings)
        means = Means("torch" in probed.tools, machine=probed.isa, tools=probed.tools)
        jobs = Jobs(settings, ArtifactStore(settings.artifact_store_url), sandbox, lambda: means)
        tools = ", ".join(f"{name} {version}" for name, version in sorted(probed.tools.items()))
        parts.append(f"Measured on {probed.isa}, {settings.threads} thread, with {tools}.")
        for name in names:
            print(f"{name}:", file=sys.stderr, flush=True)
            events, took_s = await optimized(jobs, name, MODELS[name](directory), budget_s)
            parts.append(table(name, events, took_s))
            print(parts[-1], flush=True)
            fine &= isinstance(events[-1], ModelReady) and outcome(events)
    return "\n\n".join(parts), fine


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    parser.add_argument("--budget-s", type=float, default=300.0)
    parser.add_argument("--directory", type=Path, default=Path(".bench"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.directory.mkdir(parents=True, exist_ok=True)
    text, fine = asyncio.run(run(asked.models, asked.budget_s, asked.directory.absolute()))
    if asked.out is not None:
        put(asked.out, text)
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()
