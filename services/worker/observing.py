"""A few numbers of a sample of the rows that went through a variant, for the monitor to notice drift.

While batches run, **one row of each request**, drawn at random, is only copied: the first `MOST_ROWS` of each
interval, and of a row at most `MOST_ELEMENTS`, evenly spread. Rows that came together are seldom independent (the
frames of a film, the visits of a customer), and a test that takes them for so many witnesses calls drifts where there
are none; one of each makes its promise hold whatever a request's rows have in common. What is computed of them is
computed once an interval, when metrics are sent:

- of a tensor with few numbers a row (a table's), each: `input/x/3`;
- of any other the row's mean and standard deviation, `input/x/mean`, `input/x/std`, and the means of its quarters;
- of outputs that look like scores of classes, the largest and its place: `output/y/top`, `output/y/class`.

Texts are left out. Where a variant answers a request as a whole, and of a tensor without a batch axis, all of it is a
row.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np

from shared import bins
from shared.metric_events import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shared.signature import Signature, TensorSpec
    from shared.tensors import Array

MOST_ROWS: Final = 256
"""Of each variant in an interval."""
MOST_ELEMENTS: Final = 4096
MOST_VARIANTS: Final = 64
_COLUMNS: Final = 16
"""So many numbers a row are looked at one by one."""
_PARTS: Final = 4
_MOST_CLASSES: Final = 1000
_CLASSES: Final = 64
"""Classes beyond share the places of the first ones."""
_MOST_FEATURES: Final = 32
_NUMERIC: Final = "fiub"
"""Kinds of numpy's that have a mean."""

Key = tuple[str, int, str]
"""Model, version and variant."""


@dataclass(slots=True)
class _Sample:
    """Rows of one variant, by tensor, in parts."""

    rows: int = 0
    parts: defaultdict[str, list[Array]] = field(default_factory=lambda: defaultdict(list))


class Observer:
    """What was seen of each variant since it was last asked."""

    def __init__(self, seed: int | None = None) -> None:
        self._samples: dict[Key, _Sample] = {}
        self._dice = random.Random(seed)  # noqa: S311 - no secret

    def saw(
        self,
        key: Key,
        signature: Signature,
        feeds: Mapping[str, Array],
        outputs: Sequence[Array],
        requests: Sequence[int] | None,
    ) -> None:
        """A run: its inputs and outputs, and how many rows each of its requests has; None if it is one as a whole."""
        sample = self._samples.get(key)
        if sample is None:
            if len(self._samples) >= MOST_VARIANTS:
                return
            sample = self._samples[key] = _Sample()
        room = MOST_ROWS - sample.rows
        if room <= 0:
            return
        drawn = None if requests is None else self._draw(requests)[:room]
        if drawn is not None and not len(drawn):
            return
        for name, spec, array in _tensors(signature, feeds, outputs):
            rows = _rows(array, spec.batch_axis, drawn)
            if rows is not None:
                sample.parts[name].append(rows)
        sample.rows += 1 if drawn is None else len(drawn)

    def _draw(self, requests: Sequence[int]) -> Array:
        """The place in the run of one row of each request."""
        if max(requests) == 1:  # as most are
            return np.flatnonzero(requests)
        first = accumulate(requests, initial=0)
        places = [begin + int(self._dice.random() * rows) for begin, rows in zip(first, requests, strict=False) if rows]
        return np.array(places, dtype=np.intp)

    def take(self) -> Iterator[tuple[Key, int, dict[str, Feature]]]:
        """Of each variant: how many rows were seen, and their features."""
        samples, self._samples = self._samples, {}
        for key, sample in samples.items():
            features = dict(_features(sample.parts))
            if features:
                yield key, sample.rows, dict(list(features.items())[:_MOST_FEATURES])


def _tensors(
    signature: Signature, feeds: Mapping[str, Array], outputs: Sequence[Array]
) -> Iterator[tuple[str, TensorSpec, Array]]:
    for spec in signature.inputs:
        if spec.name in feeds:
            yield f"input/{spec.name}", spec, feeds[spec.name]
    for spec, array in zip(signature.outputs, outputs, strict=True):
        yield f"output/{spec.name}", spec, array


def _rows(array: Array, batch_axis: int | None, drawn: Array | None) -> Array | None:
    """A copy of the rows that are drawn, or of all as one, by elements, thinned.

    None for what has no numbers, or fewer rows than the requests.
    """
    if array.dtype.kind not in _NUMERIC or not array.size:
        return None
    if batch_axis is None or drawn is None:
        return _thinned(array.reshape(1, -1)).copy()
    rows = np.moveaxis(array, batch_axis, 0)
    found: Array | None = _thinned(rows.reshape(len(rows), -1))[drawn] if drawn[-1] < len(rows) else None
    return found


def _thinned(flat: Array) -> Array:
    return flat[:, :: -(-flat.shape[1] // MOST_ELEMENTS)]


def _features(parts: Mapping[str, Sequence[Array]]) -> Iterator[tuple[str, Feature]]:
    for name, arrays in parts.items():
        widths = {array.shape[1] for array in arrays}
        if len(widths) == 1 and (width := widths.pop()) <= _COLUMNS:
            together = np.concatenate(arrays).astype(np.float64)
            for column in range(width):
                yield f"{name}/{column}", _numbers(together[:, column])
        else:
            yield from _of_wide(name, arrays)
        if name.startswith("output/") and all(_are_scores(array) for array in arrays):
            best = np.concatenate([array.argmax(axis=1) for array in arrays])
            yield f"{name}/top", _numbers(np.concatenate([array.max(axis=1) for array in arrays]))
            yield f"{name}/class", Feature(kind="class", bins=_counted(best % _CLASSES))


def _of_wide(name: str, arrays: Sequence[Array]) -> Iterator[tuple[str, Feature]]:
    """Moments of the rows, and where in them the numbers lie: a picture that is moved keeps its mean."""
    whole = [array.astype(np.float64) for array in arrays]
    yield f"{name}/mean", _numbers(np.concatenate([array.mean(axis=1) for array in whole]))
    yield f"{name}/std", _numbers(np.concatenate([array.std(axis=1) for array in whole]))
    for part in range(_PARTS):
        means = [
            np.array_split(array, _PARTS, axis=1)[part].mean(axis=1) for array in whole if array.shape[1] >= _PARTS
        ]
        if len(means) == len(whole):
            yield f"{name}/part{part}", _numbers(np.concatenate(means))


def _are_scores(array: Array) -> bool:
    return array.dtype.kind == "f" and 1 < array.shape[1] <= _MOST_CLASSES


def _numbers(values: Array) -> Feature:
    return Feature(kind="number", bins=_counted(bins.of(values)))


def _counted(places: Array) -> dict[int, int]:
    found, counts = np.unique(places, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
