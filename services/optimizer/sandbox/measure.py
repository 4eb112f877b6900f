"""Measuring: how close a candidate's answers are to those of fp32, and how long runs take.

Answers are those to the rows to judge by: data that were held out, else made-up ones; `quality` compares them. Speed is
the median of single runs, fp32 and candidate by turns, so that a busy machine slows both. Memory is what loading and
running the candidate added to this process, as the system counts it: a rough figure for small models.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import psutil

from services.optimizer.messages import PARENT_FILE
from services.optimizer.sandbox import signature, vet
from services.optimizer.sandbox.batching import holds
from services.optimizer.sandbox.probes import Rows, stack
from services.optimizer.sandbox.reference import engine as engine_of
from shared.events import Estimate, Latency, Measurements
from shared.machine import isa
from shared.quality.compare import labelled, unlabelled
from shared.quality.estimates import NotComparable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from services.optimizer.sandbox.batching import Batching
    from services.optimizer.sandbox.engine import Feeds, Runner
    from services.optimizer.sandbox.reference import Reference
    from shared.quality.estimates import Comparison
    from shared.tensors import Array

BATCH_SIZES: Final = (1, 8, 32)
_MIN_RUNS: Final = 3
_MAX_RUNS: Final = 51
_BUDGET_S: Final = 0.5
"""For the runs at one batch size; at least `_MIN_RUNS` are made whatever they take."""
_TICK_S: Final = 1e-9


def of_reference(reference: Reference) -> Measurements:
    """The reference beside itself."""
    times = latencies_s([reference.engine], reference)
    return Measurements(
        max_abs_error=0.0,
        cosine=1.0,
        row_independent=reference.batching.outputs is not None,
        latencies=_latencies(times, 0),
        speedup=1.0,
        byte_size=len(reference.content),
        machine=isa(),
        throughput_rows_s=_throughput(times, 0),
        judged_on=judged_on(reference),
    )


def of_candidate(
    reference: Reference, content: bytes, *, may_batch: bool = True
) -> tuple[Measurements, tuple[Comparison, ...]]:
    """Another form of the model, beside the reference: its figures, and what it lost.

    Raises:
        Rejection: it does not load or run.
        NotComparable: it gives something else than the reference.
    """
    before_bytes = _resident_bytes()
    engine = reference.engine_of(content)
    times = latencies_s([reference.engine, engine], reference)
    memory_bytes = max(0, _resident_bytes() - before_bytes)
    per_row = {size: medians[0] / size for size, medians in times.items()}
    size = min(per_row, key=lambda size: per_row[size])
    compared = comparisons(reference, reference.engine, engine, size)
    batching, seed = reference.batching, reference.job.seed
    independent = may_batch and holds(engine, reference.signature, batching, seed)
    served = times if independent or batching.outputs is None else {1: times[1]}
    by_metric: dict[tuple[str, str], float] = {(each.output, each.metric): each.candidate.value for each in compared}
    measured = Measurements(
        max_abs_error=_of(by_metric, "max-abs-error", max),
        cosine=_of(by_metric, "cosine", min),
        top1_agreement=_of(by_metric, "agreement", min),
        row_independent=independent,
        latencies=_latencies(times, 1),
        speedup=speedup(*([medians[index] for medians in times.values()] for index in (0, 1))),
        byte_size=len(content),
        machine=isa(),
        throughput_rows_s=_throughput(served, 1),
        memory_bytes=memory_bytes,
        judged_on=judged_on(reference),
        quality=estimates(compared),
    )
    return measured, compared


def estimates(compared: Sequence[Comparison]) -> dict[str, Estimate]:
    """The candidate's figures with their intervals, by output and metric; of one output, by metric alone."""
    several = len({each.output for each in compared}) > 1
    return {
        f"{each.output}: {each.metric}"[:200] if several else each.metric: Estimate(
            value=each.candidate.value, low=each.candidate.low, high=each.candidate.high, rows=each.rows
        )
        for each in compared
    }


def _of(by_metric: Mapping[tuple[str, str], float], metric: str, worst: Callable[..., float]) -> float | None:
    """The worst of all outputs."""
    return worst((value for (_, name), value in by_metric.items() if name == metric), default=None)


def judged_on(reference: Reference) -> str:
    """What answers are compared on."""
    return "synthetic" if reference.sets.judged is None else "data"


def rows_used(reference: Reference) -> dict[str, int]:
    """How many rows of which data sets a judgement took."""
    return {} if reference.sets.judged is None else {"judged": len(reference.sets.judged)}


def comparisons(reference: Reference, one: Runner, other: Runner, size: int) -> tuple[Comparison, ...]:
    """What `other` loses against `one` on the rows to judge by, `size` of them in a run.

    Raises:
        Rejection: one of them does not run.
        NotComparable: they give something else.
    """
    judged, sets = reference.judged(), reference.sets.judged
    expected, found = (answers(engine, judged, reference.batching, size) for engine in (one, other))
    compared: list[Comparison] = []
    for spec in reference.signature.outputs:
        wide, narrow = expected[spec.name], found[spec.name]
        truth = None if sets is None else sets.truth(spec.name)
        compared += _labelled(spec.name, wide, narrow, truth) or unlabelled(spec.name, wide, narrow)
    return tuple(compared)


def beside_parent(reference: Reference) -> tuple[Comparison, ...]:
    """What an update loses against its parent, as `comparisons`; by classes alone if their number has changed.

    Raises:
        Rejection, NotComparable: as `comparisons`.
    """
    parent_content = Path(PARENT_FILE).read_bytes()
    parent_signature = signature.read(vet.parse(parent_content))
    parent = engine_of(reference.job, parent_content, parent_signature)
    if parent_signature.outputs == reference.signature.outputs:
        return comparisons(reference, parent, reference.engine, 1)
    judged, sets = reference.judged(), reference.sets.judged
    name = reference.signature.outputs[0].name
    own = answers(reference.engine, judged, reference.batching, 1)[name]
    before = answers(parent, judged, reference.batching, 1).get(name)
    if sets is None or sets.label is None or before is None:
        raise NotComparable("its answers have another form, and there are no labels")
    return labelled(name, before.argmax(axis=-1), own.argmax(axis=-1), sets.label)


def _labelled(output: str, expected: Array, found: Array, truth: Array | None) -> tuple[Comparison, ...]:
    """By what is true, if that is known of this output."""
    if truth is None or len(truth) != len(expected):
        return ()
    try:
        return labelled(output, expected, found, truth)
    except NotComparable:
        if expected.shape != found.shape:
            raise
        return ()  # the labels are not of this output


def answers(engine: Runner, rows: Sequence[Feeds], batching: Batching, size: int) -> dict[str, Array]:
    """Answers by output, [rows, ...]. Where rows' answers differ in shape, those of the most common one."""
    axes = batching.outputs
    found: dict[str, dict[int, Array]] = {name: {} for name in engine.outputs}
    for places in runs(rows, size if axes is not None else 1):
        outputs = engine.run(stack([rows[place] for place in places], batching.inputs))
        for index, (name, output) in enumerate(zip(engine.outputs, outputs, strict=True)):
            for place, row in enumerate(places):
                found[name][row] = output if axes is None else np.take(output, place, axes[index])
    return {name: _stacked(list(dict(sorted(by_row.items())).values())) for name, by_row in found.items()}


def _stacked(rows: list[Array]) -> Array:
    common, _ = Counter(row.shape for row in rows).most_common(1)[0]
    return np.stack([row for row in rows if row.shape == common])


def runs(rows: Sequence[Feeds], size: int) -> Iterator[list[int]]:
    """The places of rows in runs of up to `size`, such that all rows of a run have the same shapes."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for place, row in enumerate(rows):
        waiting = by_shape.setdefault(tuple(array.shape for array in row.values()), [])
        waiting.append(place)
        if len(waiting) == size:
            yield list(waiting)
            waiting.clear()
    yield from (waiting for waiting in by_shape.values() if waiting)


def latencies_s(engines: Sequence[Runner], reference: Reference) -> dict[int, list[float]]:
    """Median seconds of a run of each engine, by batch size."""
    return {size: _medians(engines, batch) for size, batch in feeds(reference).items()}


def feeds(reference: Reference) -> dict[int, Feeds]:
    """What runs are measured with, by batch size: those of `BATCH_SIZES` that the cap allows."""
    batching = reference.batching
    rows = Rows(reference.signature, batching.setting, batching.inputs, reference.job.seed)
    pool = rows.plain(min(max(BATCH_SIZES), batching.cap))
    sizes = [size for size in BATCH_SIZES if size <= batching.cap]
    return {size: stack(pool[:size], batching.inputs) for size in sizes}


def _latencies(times: Mapping[int, Sequence[float]], index: int) -> tuple[Latency, ...]:
    return tuple(
        Latency(batch_size=size, p50_s=medians[index], reference_s=medians[0]) for size, medians in times.items()
    )


def _throughput(times: Mapping[int, Sequence[float]], index: int) -> float:
    return max(size / max(medians[index], _TICK_S) for size, medians in times.items())


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _medians(engines: Sequence[Runner], batch: Feeds) -> list[float]:
    for engine in engines:
        engine.run(batch)  # the first run of a shape allocates
    times: list[list[float]] = [[] for _ in engines]
    until_s = time.monotonic() + _BUDGET_S
    for turn in range(_MAX_RUNS):
        if turn >= _MIN_RUNS and time.monotonic() > until_s:
            break
        for engine, taken in zip(engines, times, strict=True):
            taken.append(engine.duration_s(batch))
    return [float(np.median(taken)) for taken in times]


def speedup(reference_s: Sequence[float], candidate_s: Sequence[float]) -> float:
    """The geometric mean over batch sizes of the reference's time over the candidate's."""
    return float(np.exp(np.mean(np.log(np.asarray(reference_s) / np.asarray(candidate_s)))))
