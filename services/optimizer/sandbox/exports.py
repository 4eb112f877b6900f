"""An export in the child: built, loaded again by its own framework, and run beside ONNX Runtime.

The child gets a variant's file, whose digest the service has checked. The inputs are made up as for the gate (`probes`)
at several batch sizes and, where other free sizes work, at others of these too. What is written is what was compared:
the bytes that were loaded again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from services.optimizer.messages import EXPORT_FILE, UPLOAD_FILE, Exported
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import signature, vet
from services.optimizer.sandbox.batching import Batching
from services.optimizer.sandbox.probes import Rows, Setting, key, stack
from services.optimizer.sandbox.reference import batching_of, engine
from shared.export_events import Parity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnx import ModelProto

    from services.optimizer.messages import Job
    from services.optimizer.sandbox.engine import Engine, Feeds
    from shared.signature import Signature
    from shared.tensors import Array

_BATCHES: Final = (1, 2, 8)
_SAMPLE_ROWS: Final = 3
"""Neither 1, which torch takes for fixed, nor a number that stands in a graph by chance."""
_TOLERANCES: Final = {"f2": 1e-2, "f4": 1e-4, "f8": 1e-6}
"""Of a value, and as much of its own size; whole numbers must be equal."""
_DATATYPES: Final = frozenset(
    {"BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"}
)  # fmt: skip - what the interpreter computes with


def export(job: Job) -> Exported:
    """Write the file `EXPORT_FILE`, and say how it compares.

    Raises:
        Rejection: it can't be had in this format; operators that are not covered are named.
    """
    model = vet.parse(Path(UPLOAD_FILE).read_bytes())
    found = signature.read(model)
    if strange := sorted({spec.datatype for spec in (*found.inputs, *found.outputs)} - _DATATYPES):
        raise Rejection("not_exportable", f"Tensors of {', '.join(strange)} can't be had in this format")
    loaded = engine(job, model.SerializeToString(deterministic=True), found)
    known = _batching(job, loaded, found)
    rows = Rows(found, known.setting, known.inputs, job.seed)
    sample = stack(
        rows.plain(_SAMPLE_ROWS if any(axis is not None for axis in known.inputs.values()) else 1), known.inputs
    )
    content, answer = _built(job, model, found, known, sample)
    parity = tuple(_compared(loaded, answer, feeds, batch) for feeds, batch in _inputs(job, loaded, found, known))
    worst = max(parity, key=_share)
    if worst.max_abs_error > worst.tolerance:
        found_error = f"{worst.max_abs_error:.3g} at batch size {worst.batch_size}, more than {worst.tolerance:.3g}"
        raise Rejection("not_exportable", f"Loaded again, its answers differ from ONNX Runtime's by {found_error}")
    Path(EXPORT_FILE).write_bytes(content)
    return Exported(parity=parity)


def _batching(job: Job, loaded: Engine, found: Signature) -> Batching:
    """As the gate has found it; an old version's is found again."""
    if job.batched is not None:
        known = job.batched
        return Batching(Setting(known.sizes, known.highs), dict(known.inputs), known.outputs, known.cap)
    return batching_of(job, loaded, found)


def _built(
    job: Job, model: ModelProto, found: Signature, known: Batching, sample: Feeds
) -> tuple[bytes, Callable[[Feeds], list[Array]]]:
    """The file, and what it is once it has been loaded again."""
    if job.export == "savedmodel":
        from services.optimizer.sandbox import savedmodel  # noqa: PLC0415 - it loads TensorFlow

        return savedmodel.built(model, found)
    from services.optimizer.training import exporting  # noqa: PLC0415 - it loads torch
    from services.optimizer.training.errors import TrainingError  # noqa: PLC0415 - as above

    names = [spec.name for spec in found.inputs]
    ordered = [sample[name] for name in names]
    try:
        if job.export == "pt2":
            free = [_free_axes(found, known, index) for index in range(len(names))]
            content = exporting.pt2(exporting.exported(model, ordered, free), job.about)
        else:
            content = exporting.torchscript(model, ordered, job.about)
        again = exporting.loaded(content, job.export or "")
    except TrainingError as err:
        raise Rejection("not_exportable", str(err)) from err
    return content, lambda feeds: again([feeds[name] for name in names])


def _free_axes(found: Signature, known: Batching, index: int) -> list[int]:
    spec = found.inputs[index]
    axis = known.inputs[spec.name]
    return [each for each in range(len(spec.shape)) if each == axis or key(spec, each) is not None]


def _inputs(job: Job, loaded: Engine, found: Signature, known: Batching) -> Iterator[tuple[Feeds, int]]:
    """What both are run on: several batch sizes, and where the model takes them, other sizes of what is free."""
    batched = any(axis is not None for axis in known.inputs.values())
    setting = known.setting
    longer = Setting({name: size + 3 for name, size in setting.sizes.items()}, setting.highs)
    for each in (setting, longer) if setting.sizes else (setting,):
        rows = Rows(found, each, known.inputs, job.seed + 7)
        for count in _BATCHES if batched else (1,):
            feeds = stack(rows.plain(count), known.inputs)
            try:
                loaded.run(feeds)
            except Rejection:
                continue  # ONNX Runtime does not take such sizes either
            yield feeds, count


def _compared(loaded: Engine, answer: Callable[[Feeds], list[Array]], feeds: Feeds, batch: int) -> Parity:
    expected = loaded.run(feeds)
    try:
        given = answer(feeds)
    except Exception as err:
        raise Rejection("not_exportable", f"Loaded again, it does not run {batch} rows: {str(err)[-600:]}") from err
    return _parity(expected, given, batch)


def _parity(expected: Sequence[Array], given: Sequence[Array], batch: int) -> Parity:
    """The output that is furthest off, measured in its tolerance.

    Raises:
        Rejection: shapes or datatypes differ.
    """
    worst = Parity(batch_size=batch, max_abs_error=0.0, tolerance=_TOLERANCES["f8"])
    for wanted, got in zip(expected, given, strict=True):
        if (wanted.shape, wanted.dtype) != (got.shape, got.dtype):
            what = f"{got.dtype}{list(got.shape)}, not {wanted.dtype}{list(wanted.shape)}"
            raise Rejection("not_exportable", f"Loaded again, it gives {what} for {batch} rows")
        tolerance = _TOLERANCES.get(wanted.dtype.str[1:], 0.0) or 0.5
        worst = max(worst, _of_output(wanted, got, batch, tolerance), key=_share)
    return worst


def _share(parity: Parity) -> float:
    """Of the tolerance."""
    return parity.max_abs_error / parity.tolerance


def _of_output(wanted: Array, got: Array, batch: int, tolerance: float) -> Parity:
    """The error as part of the tolerance for its value: `|a - b| / (1 + |b|)`. What is not finite must be alike."""
    left, right = (np.asarray(each, np.float64) for each in (got, wanted))
    with np.errstate(invalid="ignore"):
        error = np.abs(left - right) / (1 + np.abs(right))
    alike = (left == right) | (np.isnan(left) & np.isnan(right))
    error = np.where(alike, 0.0, np.nan_to_num(error, nan=1e9, posinf=1e9))
    largest: Any = error.max(initial=0.0)
    return Parity(batch_size=batch, max_abs_error=float(largest), tolerance=tolerance)
