"""A candidate against its reference, output by output and metric by metric.

What "loss" is, positive where the candidate is worse:

| metric | loss |
|---|---|
| accuracy, top-k, macro-F1 | the reference's less the candidate's |
| MAE, RMSE | the candidate's less the reference's, over the standard deviation of the labels: 0.01 is one hundredth of what there is to predict |
| agreement, cosine | one less it |

Which ones gate: accuracy or RMSE where there are labels; without them agreement of outputs that look like scores, or
that are whole numbers, flags or strings, and cosine of the others.
"""  # noqa: E501 - a table

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shared.quality import intervals, scores
from shared.quality.estimates import Comparison, Estimate, NotComparable

if TYPE_CHECKING:
    from shared.quality.estimates import Metric
    from shared.quality.intervals import Floats
    from shared.quality.scores import Flags
    from shared.tensors import Array

_MAX_COUNTS: Final = 2_000_000
"""Rows times classes for macro-F1, whose bootstrap keeps six numbers for each; beyond it, it is left out."""


def labelled(
    output: str, reference: Array, candidate: Array, labels: Array, *, k: int = 5, seed: int = 0
) -> tuple[Comparison, ...]:
    """Compare by what is true.

    Classification if the labels are whole numbers, one for each vector of scores along the last axis, or of the shape
    and kind of answers that are no scores. A label below 0 does not count. Otherwise regression: labels as the answers,
    where a last axis of 1 may be absent.

    Args:
        output: its name.
        reference: `[rows, ...]`
        candidate: `[rows, ...]`
        labels: `[rows, ...]`
        k: of top-k accuracy, which is given if there are more classes than that.
        seed: of bootstraps.

    Raises:
        NotComparable: the shapes do not fit, or numbers are not finite in one alone.
    """
    wide, other = scores.comparable(reference, candidate)
    if wide.dtype.kind != "f" and labels.shape == wide.shape:
        return _classified(output, wide, other, labels, labels == labels, seed)  # noqa: PLR0124 - all of them count
    if labels.dtype.kind in "iu" and labels.shape == wide.shape[:-1] and wide.shape[-1] > 1:
        found = _classified(output, wide.argmax(axis=-1), other.argmax(axis=-1), labels, labels >= 0, seed)
        if wide.shape[-1] <= k:
            return found
        right = (scores.among_top(wide, labels, k), scores.among_top(other, labels, k))
        return (*found, _shares(output, "top-k", right, labels >= 0, seed, k=k))
    targets = labels[..., None] if labels.shape == wide.shape[:-1] and wide.shape[-1] == 1 else labels
    if wide.dtype.kind != "f" or targets.shape != wide.shape or targets.dtype.kind not in "iuf":
        raise NotComparable(f"labels of shape {list(labels.shape)} do not fit answers of shape {list(wide.shape)}")
    return _regressed(output, wide, other, targets.astype(np.float64), seed)


def unlabelled(
    output: str, reference: Array, candidate: Array, *, is_scores: bool | None = None, seed: int = 0
) -> tuple[Comparison, ...]:
    """Compare by what the reference says. `is_scores` says whether the last axis holds classes; None: by its looks.

    Raises:
        NotComparable: the shapes differ, or numbers are not finite in one alone.
    """
    wide, other = scores.comparable(reference, candidate)
    if wide.dtype.kind != "f":
        return (_agreement(output, np.asarray(wide == other), seed),)
    likely = scores.looks_like_scores(reference) if is_scores is None else is_scores
    found = []
    if likely:
        found.append(_agreement(output, wide.argmax(axis=-1) == other.argmax(axis=-1), seed))
    (cosine,) = intervals.means(scores.cosines(wide, other)[:, None], seed)
    rows, farthest = len(wide), intervals.exact(float(np.abs(wide - other).max()))
    found.append(_against(output, "cosine", rows, cosine, gates=not likely))
    found.append(
        Comparison(
            output=output,
            metric="max-abs-error",
            rows=rows,
            candidate=farthest,
            reference=None,
            loss=None,
            gates=False,
        )
    )
    return tuple(found)


def _classified(
    output: str, reference: Array, candidate: Array, labels: Array, counted: Flags, seed: int
) -> tuple[Comparison, ...]:
    """From predicted classes: accuracy, and macro-F1 if that is not too large."""
    right = (np.asarray(reference == labels), np.asarray(candidate == labels))
    accuracy = _shares(output, "accuracy", right, counted, seed, gates=True)
    classes = np.unique(labels[counted])
    if len(classes) * len(labels) > _MAX_COUNTS:
        return (accuracy,)
    counts = [scores.confusion(predicted, labels, classes, counted) for predicted in (reference, candidate)]

    def statistics(means: Floats) -> Floats:
        ours, theirs = (scores.macro_f1(half) for half in np.split(means, 2, axis=1))
        return np.stack([ours, theirs, ours - theirs], axis=1)

    found = intervals.bootstrap(np.concatenate(counts, axis=1), statistics, seed)
    return accuracy, _paired(output, "macro-f1", len(labels), found)


def _shares(
    output: str,
    metric: Metric,
    right: tuple[Flags, Flags],
    counted: Flags,
    seed: int,
    *,
    gates: bool = False,
    k: int | None = None,
) -> Comparison:
    """Shares of right decisions of both. With one decision a row the intervals for that; else the bootstrap."""
    reference, candidate = (scores.by_row(each, counted) for each in right)
    if not len(reference):
        raise NotComparable("no label counts: all are below 0")
    if _is_single(right[0]):
        both = reference > 0, candidate > 0
        found = [intervals.share(both[0]), intervals.share(both[1]), intervals.share_lost(*both)]
    else:
        columns = np.stack([reference, candidate, reference - candidate], axis=1)
        found = intervals.means(columns, seed)
    return _paired(output, metric, len(reference), found, gates=gates, k=k)


def _regressed(output: str, reference: Floats, candidate: Floats, labels: Floats, seed: int) -> tuple[Comparison, ...]:
    """Mean absolute and root mean squared error."""
    rows = len(labels)
    spread = float(labels.std()) or 1.0
    errors = [(answers - labels).reshape(rows, -1) for answers in (reference, candidate)]

    def statistics(means: Floats) -> Floats:
        figures = np.concatenate([means[:, :2], np.sqrt(means[:, 2:])], axis=1)
        lost = [(figures[:, 1] - figures[:, 0]) / spread, (figures[:, 3] - figures[:, 2]) / spread]
        return np.concatenate([figures, np.stack(lost, axis=1)], axis=1)

    columns = [np.abs(error).mean(axis=1) for error in errors] + [(error**2).mean(axis=1) for error in errors]
    mae, other_mae, rmse, other_rmse, lost, other_lost = intervals.bootstrap(
        np.stack(columns, axis=1), statistics, seed
    )
    return (
        _paired(output, "rmse", rows, [rmse, other_rmse, other_lost], gates=True),
        _paired(output, "mae", rows, [mae, other_mae, lost]),
    )


def _agreement(output: str, same: Flags, seed: int) -> Comparison:
    """The share of decisions in which both are the same."""
    rows = scores.by_row(same)
    found = intervals.share(rows > 0) if _is_single(same) else intervals.means(rows[:, None], seed)[0]
    return _against(output, "agreement", len(rows), found, gates=True)


def _is_single(decisions: Flags) -> bool:
    """Whether a row is one decision."""
    return decisions.size == len(decisions)


def _against(output: str, metric: Metric, rows: int, found: Estimate, *, gates: bool) -> Comparison:
    """A metric that compares with the reference itself, and has 1 where nothing was lost."""
    loss = Estimate(value=1 - found.value, low=1 - found.high, high=1 - found.low, method=found.method)
    return Comparison(output=output, metric=metric, rows=rows, candidate=found, reference=None, loss=loss, gates=gates)


def _paired(
    output: str, metric: Metric, rows: int, found: list[Estimate], *, gates: bool = False, k: int | None = None
) -> Comparison:
    """From estimates of reference, candidate and loss."""
    reference, candidate, loss = found
    return Comparison(
        output=output,
        metric=metric,
        rows=rows,
        candidate=candidate,
        reference=reference,
        loss=loss,
        gates=gates,
        k=k,
    )
