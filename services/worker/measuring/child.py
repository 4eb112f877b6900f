"""What the child does: each candidate by turns with fp32, at each batch size; the medians.

As the optimizer measures, so that figures compare; but on the engine, and with the options, of this worker.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from services.worker.measuring.messages import INPUTS_FILE, Failed, Ran, Ready, Took, Wants, file_of
from services.worker.onnx_engine import OnnxEngine
from services.worker.settings import WorkerSettings
from shared.errors import AiaasError
from shared.events import Latency
from shared.runtime_config import RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.worker.measuring.messages import Message, Task
    from shared.signature import Signature
    from shared.tensors import Array

_MIN_RUNS: Final = 3
_MAX_RUNS: Final = 51
_BUDGET_S: Final = 0.25
"""For the runs at one batch size; at least `_MIN_RUNS` are made whatever they take."""
_HANDFUL_S: Final = 0.01
"""How long runs follow each other before others may have the device."""
_MAX_PROBLEM_CHARS: Final = 500


def measure(task: Task, say: Callable[[Message], None], wait: Callable[[], None]) -> None:
    """Say of each candidate what it took. `wait` returns when the device is ours."""
    settings = WorkerSettings(threads=task.threads, device=task.device)
    try:
        feeds = _inputs(task.signature)
        reference = _engine(task, task.reference, settings)
    except (AiaasError, ValueError, OSError) as err:
        say(Failed(problem=str(err)[:_MAX_PROBLEM_CHARS]))
        return
    say(Ready())
    for name in task.candidates:
        try:
            engines = (reference, _engine(task, name, settings))
            latencies = [_latency(size, engines, batch, say, wait) for size, batch in feeds.items()]
        except (AiaasError, OSError) as err:
            say(Took(candidate=name, problem=str(err)[:_MAX_PROBLEM_CHARS] or repr(err)))
        else:
            say(Took(candidate=name, latencies=tuple(latencies)))


def _engine(task: Task, name: str, settings: WorkerSettings) -> OnnxEngine:
    content = Path(file_of(name)).read_bytes()
    return OnnxEngine.load(content, task.signature, settings, task.runtime or RuntimeConfig())


def _inputs(signature: Signature) -> dict[int, dict[str, Array]]:
    """Feeds by batch size."""
    feeds: dict[int, dict[str, Array]] = {}
    with np.load(INPUTS_FILE, allow_pickle=False) as archive:
        for key in archive.files:
            size, _, place = key.partition(".")
            array = archive[key]
            if array.dtype.kind == "U":  # NumPy keeps texts by their longest; the engine takes bytes
                array = np.array([text.encode() for text in array.ravel()], object).reshape(array.shape)
            feeds.setdefault(int(size), {})[signature.inputs[int(place)].name] = array
    if not feeds or any(len(each) != len(signature.inputs) for each in feeds.values()):
        raise ValueError("the inputs to measure with are not those of the model")
    return dict(sorted(feeds.items()))


def _latency(
    size: int,
    engines: tuple[OnnxEngine, OnnxEngine],
    feeds: Mapping[str, Array],
    say: Callable[[Message], None],
    wait: Callable[[], None],
) -> Latency:
    times: tuple[list[float], list[float]] = ([], [])
    spent_s = 0.0
    while len(times[0]) < _MIN_RUNS + 1 or (len(times[0]) <= _MAX_RUNS and spent_s < _BUDGET_S):
        say(Wants())
        wait()
        began_s = time.monotonic()
        try:
            while time.monotonic() < began_s + _HANDFUL_S:
                for engine, taken in zip(engines, times, strict=True):
                    taken.append(_duration_s(engine, feeds))
        finally:
            say(Ran())
        spent_s += time.monotonic() - began_s
    # The first run of a shape allocates.
    reference_s, own_s = (float(np.median(taken[1:])) for taken in times)
    return Latency(batch_size=size, p50_s=own_s, reference_s=reference_s)


def _duration_s(engine: OnnxEngine, feeds: Mapping[str, Array]) -> float:
    run = engine.begin()
    began_s = time.perf_counter()
    run(feeds)
    return time.perf_counter() - began_s
