"""Engines run a variant's bytes: the one interface, and which of them are here.

    onnx_engine     ONNX Runtime, on CUDA where a session really got it, else on the CPU
    torch_engine    torch, for `.pt2` files that do not convert; only where the extra `torch` is installed

A variant says which engine it needs (`Variant.engine`), its runtime configuration with what options. A library is
imported when the first variant asks for it; what is installed is known without that (`installed`), and announced.

A run happens in the lane's thread, off the event loop, and has a deadline: `Run.end` asks it to stop. One that doesn't
end even then holds the device for good; that is `EngineStuck`, and the process must go (its poison marker stays and
tells the next owner).

With `instance_group.count` above 1 a batch is taken apart into as many parts, which run at once in threads of their
own, on the one loaded model: only where the gate proved rows independent, since then it changes no answer beyond the
tolerance that was proved.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from importlib import metadata, util
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import psutil

from shared.errors import ExecutionFailed, ModelNotReady, RequestCancelled, RunTimeout
from shared.events import MachineClass
from shared.machine import isa
from shared.runtime_config import ONNXRUNTIME, TORCH, RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Executor

    from services.worker.settings import WorkerSettings
    from shared.errors import AiaasError
    from shared.outcome_events import Runtime
    from shared.registry import Variant
    from shared.signature import Signature
    from shared.tensors import Array

_DISTRIBUTIONS: Final = {ONNXRUNTIME: ("onnxruntime", "onnxruntime-gpu"), TORCH: ("torch",)}
_TERMINATE_GRACE_S = 10.0
_LOOK_S = 0.1
"""How often a long run is asked for: does anyone still want its answer?"""


class EngineStuck(RuntimeError):
    """A run that went on after it was told to end. Not an answer to a request: the end of this process."""


async def _never() -> bool:
    return False


class Run(Protocol):
    """One run of an engine."""

    def __call__(self, feeds: Mapping[str, Array], /) -> list[Array]:
        """All outputs, in signature order; called for each part of a batch, in whatever thread."""

    def end(self) -> None:
        """Ask what is under way to stop."""


class Engine(ABC):
    """One loaded variant. Building it is slow: do it off the event loop, with `load`."""

    runtime: Runtime
    """What receipts say of it."""
    deterministic: bool = False
    """Whether equal inputs give equal bits each time: on a CPU they do, on a GPU where it can be asked for and was."""

    def __init__(self, signature: Signature, config: RuntimeConfig) -> None:
        self._axes = {spec.name: spec.batch_axis for spec in signature.inputs}
        axes = [spec.batch_axis for spec in signature.outputs]
        self._output_axes = [axis for axis in axes if axis is not None] if None not in axes else None
        batched = self._output_axes is not None and any(axis is not None for axis in self._axes.values())
        self.instances = config.instances.count if batched else 1
        self._others = ThreadPoolExecutor(self.instances - 1, "instance") if self.instances > 1 else None

    @abstractmethod
    def begin(self) -> Run:
        """A run to be."""

    async def run(
        self,
        inputs: Mapping[str, Array],
        executor: Executor,
        timeout_s: float,
        abandoned: Callable[[], Awaitable[bool]] = _never,
    ) -> list[Array]:
        """All outputs, in signature order.

        A run that takes long is ended when `abandoned`, asked now and then, says that nobody wants its answer.

        Raises:
            InvalidInput: BYTES that are not UTF-8.
            ExecutionFailed: the model raised.
            RunTimeout: the run took longer than `timeout_s` and was ended.
            RequestCancelled: it was abandoned.
            EngineStuck: it could not be ended.
        """
        run = self.begin()
        running = asyncio.get_running_loop().run_in_executor(executor, self._run, run, inputs)
        late_s = time.monotonic() + timeout_s
        given_up: AiaasError | None = None
        while given_up is None:
            done, _ = await asyncio.wait({running}, timeout=min(_LOOK_S, late_s - time.monotonic()))
            if done:
                return running.result()
            if time.monotonic() >= late_s:
                given_up = RunTimeout(f"the run took longer than {timeout_s:g} s")
            elif await abandoned():
                given_up = RequestCancelled("nobody waits for the answer any more")
        run.end()
        done, _ = await asyncio.wait({running}, timeout=_TERMINATE_GRACE_S)
        if not done:
            raise EngineStuck(f"a run did not end {_TERMINATE_GRACE_S} s after it was given up")
        if (err := running.exception()) is not None and not isinstance(err, ExecutionFailed):
            raise err
        raise given_up

    def _run(self, run: Run, inputs: Mapping[str, Array]) -> list[Array]:
        if self._others is None or len(parts := self._parts(inputs)) == 1:
            return run(inputs)
        others = [self._others.submit(run, part) for part in parts[1:]]
        try:
            found = [run(parts[0])]
        finally:
            wait(others)
        found += [other.result() for other in others]
        axes = self._output_axes or []
        return [np.concatenate(pieces, axis=axis) for axis, pieces in zip(axes, zip(*found, strict=True), strict=True)]

    def _parts(self, inputs: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        """The rows, as evenly as they divide, over at most `instances` parts."""
        rows = min(inputs[name].shape[axis] for name, axis in self._axes.items() if axis is not None)
        count = max(1, min(self.instances, rows))
        pieces = {
            name: [array] * count if (axis := self._axes[name]) is None else np.array_split(array, count, axis=axis)
            for name, array in inputs.items()
        }
        return [{name: each[index] for name, each in pieces.items()} for index in range(count)]


@cache
def installed() -> dict[str, str]:
    """The engines that are here, with their versions. Nothing is imported."""
    return {engine: version for engine, names in _DISTRIBUTIONS.items() if (version := _version(engine, names))}


def _version(module: str, distributions: tuple[str, ...]) -> str | None:
    if util.find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def load(content: bytes, variant: Variant, settings: WorkerSettings, *, deterministic: bool = False) -> Engine:
    """Build the engine of a variant from its bytes.

    `deterministic` is for replays: on a GPU, kernels that give the same bits each time, and no TF32.

    Raises:
        ModelNotReady: this worker lacks the engine or the device, or the bytes do not load here.
    """
    config = variant.runtime or RuntimeConfig()
    if variant.engine not in installed():
        raise ModelNotReady(f"this worker has no engine {variant.engine[:40]!r}, only {sorted(installed())}")
    if foreign := config.foreign_to(variant.engine):
        raise ModelNotReady(f"{foreign[0]} means nothing to the engine {variant.engine!r}")
    if variant.engine == TORCH:
        from services.worker.torch_engine import TorchEngine  # noqa: PLC0415 - heavy, and only some workers have it

        return TorchEngine.load(content, variant.signature, settings, config)
    from services.worker.onnx_engine import OnnxEngine  # noqa: PLC0415 - as above

    return OnnxEngine.load(content, variant.signature, settings, config, deterministic=deterministic)


def environment(settings: WorkerSettings) -> MachineClass:
    """What kind of machine this is and what is installed on it, as heartbeats say it."""
    from services.worker.onnx_engine import providers  # noqa: PLC0415 - as above

    here = installed()
    return MachineClass(
        isa=isa(),
        providers=tuple(providers(settings)) if ONNXRUNTIME in here else (),
        threads=settings.threads,
        engines=dict(here),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        python=platform.python_version(),
    )
