"""What two variants answered to the same requests, as figures: agreement, loss, latency. Pure.

Only rows that can stand in one array are compared: of an output those with the most common shape. Which metrics there
are, and what a loss is, stands in `shared.quality.compare`. Truth from `feedback` decides where there is enough of it
(`LEAST_LABELLED` rows); below that, disagreement does too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec.structs import replace

from shared.quality import intervals, scores
from shared.quality.compare import labelled, unlabelled
from shared.quality.estimates import NotComparable
from shared.tensors import to_numpy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shared.events import FeedbackGiven
    from shared.quality.estimates import Comparison, Estimate
    from shared.signature import Signature, TensorSpec
    from shared.tensors import Array, Tensor

LEAST_LABELLED: Final = 30
_MOST_CLASSES: Final = 50
_NS: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Pair:
    """What both answered to one request."""

    request_id: str
    against: tuple[Tensor, ...]
    candidate: tuple[Tensor, ...]


@dataclass
class Latencies:
    """Nanoseconds of the runs of one variant, one number a request."""

    infer_ns: list[int] = field(default_factory=list)

    def as_map(self) -> dict[str, float | None]:
        """Seconds."""
        if not self.infer_ns:
            return {"p50_s": None, "p99_s": None, "mean_s": None}
        times = np.asarray(self.infer_ns, np.float64) * _NS
        p50, p99 = np.percentile(times, [50, 99])
        return {"p50_s": float(p50), "p99_s": float(p99), "mean_s": float(times.mean())}


@dataclass
class Compared:
    """All comparisons, and how much they rest on."""

    comparisons: list[Comparison] = field(default_factory=list)
    agreement: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By output: the share of rows with the same answer or best class, and the same by the class of `against`."""
    problems: list[str] = field(default_factory=list)
    """Why an output can't be compared."""
    rows: int = 0
    labelled_rows: int = 0


def compare(pairs: Sequence[Pair], signature: Signature, truth: Mapping[str, FeedbackGiven]) -> Compared:
    """Compare the outputs in `signature`, that of `against`."""
    found = Compared()
    for spec in signature.outputs:
        given = _stacked(spec, pairs, truth, found.problems)
        if given is None:
            continue
        found.rows = max(found.rows, len(given.against))
        try:
            _compare_output(spec.name, given, found)
        except NotComparable as err:
            found.problems.append(f"output {spec.name!r}: {err}")
    return found


@dataclass
class _Stacked:
    against: Array
    candidate: Array
    labels: Array | None
    known: Array
    """Places of the rows that `labels` are of."""


def _compare_output(name: str, given: _Stacked, found: Compared) -> None:
    by_truth: tuple[Comparison, ...] = ()
    if given.labels is not None:
        try:
            by_truth = labelled(name, given.against[given.known], given.candidate[given.known], given.labels)
            found.labelled_rows = max(found.labelled_rows, len(given.known))
        except NotComparable:
            by_truth = ()  # truth of another output
    enough = bool(by_truth) and len(given.known) >= LEAST_LABELLED
    by_each_other = unlabelled(name, given.against, given.candidate)
    found.comparisons += by_truth
    found.comparisons += [replace(each, gates=each.gates and not enough) for each in by_each_other]
    found.agreement[name] = _agreement(given)


def _agreement(given: _Stacked) -> dict[str, Any]:
    """Of best classes where there are scores, else of the answers."""
    old, new = given.against, given.candidate
    if scores.looks_like_scores(old):
        old, new = old.argmax(axis=-1), new.argmax(axis=-1)
    same = np.all(np.asarray(old == new).reshape(len(old), -1), axis=1, keepdims=True)[:, 0]
    told: dict[str, Any] = {"all": _told(intervals.share(same))}
    if old.ndim == 1 and old.dtype.kind in "iubO":
        classes = Counter(old.tolist()).most_common(_MOST_CLASSES)
        told["by_class"] = {_word(each): _told(intervals.share(same[old == each])) for each, _ in classes}
    return told


def _told(share: Estimate) -> dict[str, float]:
    return {"value": share.value, "low": share.low, "high": share.high}


def _word(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _stacked(
    spec: TensorSpec, pairs: Sequence[Pair], truth: Mapping[str, FeedbackGiven], problems: list[str]
) -> _Stacked | None:
    """The rows of one output, of all pairs that have it in the most common form."""
    forms: defaultdict[Any, list[tuple[str, Array, Array]]] = defaultdict(list)
    differing = 0
    for pair in pairs:
        old, new = _rows(spec, pair.against), _rows(spec, pair.candidate)
        if old is None:
            continue
        if new is None or old.shape != new.shape:
            differing += 1
            continue
        forms[old.shape[1:], old.dtype.str, new.dtype.str].append((pair.request_id, old, new))
    if differing:
        problems.append(f"output {spec.name!r} is missing or of another shape in {differing} answers of the candidate")
    if not forms:
        return None
    rows = max(forms.values(), key=len)
    labels, known, at = [], [], 0
    for request_id, old, _ in rows:
        if (label := _truth(spec.name, truth.get(request_id), len(old))) is not None:
            labels.append(label)
            known.append(np.arange(at, at + len(old)))
        at += len(old)
    against, candidate = (np.concatenate([row[side] for row in rows]) for side in (1, 2))
    alike = labels and len({label.shape[1:] for label in labels}) == 1
    return _Stacked(
        against,
        candidate,
        np.concatenate(labels) if alike else None,
        np.concatenate(known) if alike else np.empty(0, np.int64),
    )


def _rows(spec: TensorSpec, outputs: Sequence[Tensor]) -> Array | None:
    """One output with rows along axis 0."""
    tensor = next((each for each in outputs if each.name == spec.name), None)
    if tensor is None:
        return None
    array = to_numpy(tensor)
    return array[None] if spec.batch_axis is None else np.moveaxis(array, spec.batch_axis, 0)


def _truth(output: str, given: FeedbackGiven | None, rows: int) -> Array | None:
    """What feedback says of the rows of a request: a class for each, or the right output."""
    if given is None:
        return None
    if output in given.outputs:
        flat = np.asarray(given.outputs[output], np.float32)
        return flat.reshape(rows, -1) if rows and len(flat) and len(flat) % rows == 0 else None
    if given.label is not None and len(given.label) == rows:
        return np.asarray(given.label, np.int64)
    return None
