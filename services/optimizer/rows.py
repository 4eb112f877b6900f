"""Requests of the log as a data set: which rows they hold, what is known of their right answers, and the file. Pure.

All rows of a data set have the same shapes: where requests differ in a free dimension, those of the most common shapes
are taken. The file is a `.npz` as `sandbox.datasets` reads it, and the same rows give the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from shared.errors import InvalidInput
from shared.tensors import Array, to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shared.events import FeedbackGiven
    from shared.oip import InferenceRequest
    from shared.results import Result
    from shared.signature import Signature, TensorSpec
    from shared.tensors import Tensor

LABEL: Final = "label"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip archive can name."""


@dataclass(frozen=True)
class Answered:
    """A request's rows, arrays with rows along axis 0, and what is known of the right answers."""

    request_id: str
    inputs: Mapping[str, Array]
    truth: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def inputs_of(request: InferenceRequest, signature: Signature) -> dict[str, Array] | None:
    """A request's own inputs, rows along axis 0; None if it does not give all of the model's inputs itself."""
    sent = {tensor.name: tensor for tensor in request.inputs}
    if sent.keys() != {spec.name for spec in signature.inputs}:
        return None
    if any(tensor.claimed or tensor.datatype == "BYTES" for tensor in sent.values()):
        return None
    try:
        arrays = {spec.name: _rows(spec, sent[spec.name]) for spec in signature.inputs}
    except (InvalidInput, ValueError):
        return None
    return arrays if len({len(array) for array in arrays.values()}) == 1 else None


def of_feedback(given: FeedbackGiven, rows: int, signature: Signature) -> dict[str, Array] | None:
    """What feedback says of so many rows; None if it says something of another number of them."""
    truth: dict[str, Array] = {}
    if given.label is not None:
        truth[LABEL] = np.asarray(given.label, np.int64)
    for spec in signature.outputs:
        if spec.name in given.outputs:
            flat = np.asarray(given.outputs[spec.name], np.float32)
            if len(flat) % rows:
                return None
            truth[spec.name] = flat.reshape(rows, -1)
    return truth if truth and all(len(array) == rows for array in truth.values()) else None


def of_result(result: Result, rows: int, signature: Signature) -> dict[str, Array] | None:
    """What was answered; None if nothing was, or the answers are not all in the result."""
    if result.status != "succeeded":
        return None
    given = {tensor.name: tensor for tensor in result.outputs}
    known = [spec for spec in signature.outputs if spec.name in given and not given[spec.name].claimed]
    truth = {spec.name: _rows(spec, given[spec.name]) for spec in known}
    return truth if truth and all(len(array) == rows for array in truth.values()) else None


def _rows(spec: TensorSpec, tensor: Tensor) -> Array:
    array = to_numpy(tensor)
    return array[None] if spec.batch_axis is None else np.moveaxis(array, spec.batch_axis, 0)


def together(answered: Iterable[Answered], most: int) -> dict[str, Array]:
    """The arrays of a data set of up to `most` rows, in the order of the requests; empty if there are none."""
    kept = _alike(list(answered))
    if not kept:
        return {}
    arrays = [{**each.inputs, **each.truth} for each in kept]
    return {name: np.concatenate([each[name] for each in arrays])[:most] for name in arrays[0]}


def _alike(answered: Sequence[Answered]) -> list[Answered]:
    """Those whose rows have the most common shapes."""
    if not answered:
        return []
    [(common, _)] = Counter(map(_form, answered)).most_common(1)
    return [each for each in answered if _form(each) == common]


def _form(each: Answered) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    arrays = {**each.inputs, **each.truth}
    return tuple((name, array.shape[1:], array.dtype.str) for name, array in sorted(arrays.items()))


def packed(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as a `.npz`, the same bytes each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
