"""From answers to one number a row, or a few: what intervals are made of.

Answers are `[rows, ...]`; where a row holds several decisions (tokens, pixels) its number is their mean, since they
are not independent of each other and the row is what was sampled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shared.quality.estimates import NotComparable

if TYPE_CHECKING:
    import numpy.typing as npt

    from shared.quality.intervals import Floats
    from shared.tensors import Array

    Flags = npt.NDArray[np.bool_]

_UNIT_TOLERANCE: Final = 1e-3


def comparable(reference: Array, candidate: Array) -> tuple[Array, Array]:
    """Both arrays, wide where they hold floating-point numbers; what is infinite or no number in both is 0 in both.

    Raises:
        NotComparable: they have no rows, other shapes, or numbers that are finite in one alone.
    """
    if reference.shape != candidate.shape:
        raise NotComparable(f"its answers have shape {list(candidate.shape)} and not {list(reference.shape)}")
    if not reference.ndim or not reference.size:
        raise NotComparable(f"answers of shape {list(reference.shape)} hold no rows")
    if reference.dtype.kind != "f" or candidate.dtype.kind != "f":
        return reference, candidate
    finite = np.isfinite(reference)
    if differing := int(np.sum(finite != np.isfinite(candidate))):
        raise NotComparable(f"{differing} numbers of its answers are finite where the reference's are not, or not so")
    return np.where(finite, reference, 0).astype(np.float64), np.where(finite, candidate, 0).astype(np.float64)


def looks_like_scores(answers: Array) -> bool:
    """Whether the largest number along the last axis means something: there are two or more, and a row is no embedding.

    Embeddings are known by their length of 1, which no row of probabilities has unless it is certain of one class.
    """
    if answers.dtype.kind != "f" or answers.ndim < 2 or answers.shape[-1] < 2:  # noqa: PLR2004 - a vector a row
        return False
    wide = answers.astype(np.float64)
    unit = np.abs(np.linalg.norm(wide, axis=-1) - 1) < _UNIT_TOLERANCE
    probabilities = (wide >= 0).all(axis=-1) & (np.abs(wide.sum(axis=-1) - 1) < _UNIT_TOLERANCE)
    return not bool((unit & ~probabilities).all())


def among_top(scores: Array, labels: Array, k: int = 1) -> Flags:
    """Whether the label is among the `k` largest scores; of equals the first counts. bool[labels' shape]."""
    if k == 1:
        return np.asarray(scores.argmax(axis=-1) == labels)
    own = np.take_along_axis(scores, np.clip(labels, 0, scores.shape[-1] - 1)[..., None], axis=-1)
    before = np.arange(scores.shape[-1]) < labels[..., None]
    ahead = (scores > own) | ((scores == own) & before)
    return np.asarray((ahead.sum(axis=-1) < k) & (labels < scores.shape[-1]))


def by_row(decisions: Flags, counted: Flags | None = None) -> Floats:
    """The share of decisions of a row that are true, of those that are counted; rows without any are left out."""
    flat = decisions.reshape(len(decisions), -1)
    if counted is None:
        return np.asarray(flat.mean(axis=1), np.float64)
    used = counted.reshape(len(counted), -1)
    totals = used.sum(axis=1)
    return np.asarray((flat & used).sum(axis=1)[totals > 0] / totals[totals > 0], np.float64)


def cosines(reference: Floats, candidate: Floats) -> Floats:
    """Between rows, f64[rows]. A row of zeros is like another one and like nothing else."""
    left, right = (array.reshape(len(array), -1) for array in (reference, candidate))
    # Scaled first: squares of large numbers are not finite.
    largest = np.maximum(np.abs(left).max(axis=1), np.abs(right).max(axis=1))[:, None]
    left, right = (array / np.where(largest > 0, largest, 1) for array in (left, right))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    same = (left == right).all(axis=1)
    found = np.einsum("ij,ij->i", left, right) / np.where(lengths > 0, lengths, 1)
    return np.where(same, 1.0, np.clip(np.where(lengths > 0, found, 0.0), -1.0, 1.0))


def confusion(predicted: Array, labels: Array, classes: Array, counted: Flags) -> Floats:
    """What each row adds to the counts of each class: f64[rows, 3 * classes]: true positives, predicted, labelled."""
    rows = len(labels)
    hit, said, true = (np.zeros((rows, len(classes))) for _ in range(3))
    row = np.broadcast_to(np.arange(rows).reshape(-1, *[1] * (labels.ndim - 1)), labels.shape)[counted]
    guess, label = predicted[counted], labels[counted]
    place, right = np.searchsorted(classes, label), guess == label
    np.add.at(true, (row, place), 1)
    np.add.at(hit, (row[right], place[right]), 1)
    where = np.minimum(np.searchsorted(classes, guess), len(classes) - 1)
    known = classes[where] == guess
    np.add.at(said, (row[known], where[known]), 1)
    return np.concatenate([hit, said, true], axis=1)


def macro_f1(counts: Floats) -> Floats:
    """The mean of the classes' F1 from counts f64[samples, 3 * classes]; a class that is nowhere is left out."""
    hit, said, true = np.split(counts, 3, axis=1)
    there = said + true > 0
    each = np.where(there, 2 * hit / np.where(there, said + true, 1), 0.0)
    return np.asarray(each.sum(axis=1) / np.maximum(there.sum(axis=1), 1))
