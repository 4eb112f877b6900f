"""What is computed from a model's outputs: softmax, top-k, labels, pooling. Numpy, on all rows of a batch at once.

Every step keeps rows apart: what it gives for one does not depend on the others. Which arrays may come here is settled
by `shared.processed_signature.check`. FP16 is computed in FP32 and rounded back. NaN counts as the smallest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shared.errors import ExecutionFailed

if TYPE_CHECKING:
    import numpy.typing as npt

    from shared.tensors import Array

_SHORTEST: Final = 1e-12
"""Vectors below this length are not blown up to length 1."""


def softmax(scores: Array, axis: int) -> Array:
    """`exp(x) / sum(exp(x))` along an axis, without overflow."""
    wide = _wide(scores)
    with np.errstate(invalid="ignore", divide="ignore"):  # of scores that are no numbers, shares are none either
        powers = np.exp(wide - wide.max(axis=axis, keepdims=True, initial=-np.inf))
        shares: Array = powers / powers.sum(axis=axis, keepdims=True)
    return shares.astype(scores.dtype, copy=False)


def top_k(scores: Array, k: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """The `k` largest along the last axis and where they are; of equal ones the first comes first."""
    k = min(k, scores.shape[-1])
    # Sorted backwards, so that a stable sort leaves equal ones in their order; numpy puts NaN last, so here first.
    comparable = np.where(np.isnan(scores), -np.inf, scores) if scores.dtype.kind == "f" else scores
    last = scores.shape[-1] - 1
    if k == 1:
        indices = np.argmax(comparable, axis=-1, keepdims=True) if last >= 0 else np.empty(scores.shape, np.int64)
    else:
        backwards = np.argsort(comparable[..., ::-1], axis=-1, kind="stable")
        indices = last - backwards[..., ::-1][..., :k]
    return np.take_along_axis(scores, indices, axis=-1), indices.astype(np.int64, copy=False)


def names(indices: Array, labels: npt.NDArray[np.object_]) -> Array:
    """The label of each index.

    Raises:
        ExecutionFailed: an index without a label.
    """
    if indices.size and (indices.min() < 0 or indices.max() >= len(labels)):
        stray = indices.min() if indices.min() < 0 else indices.max()
        raise ExecutionFailed(f"the model gave index {stray}, but there are {len(labels)} labels")
    named: Array = labels[indices.astype(np.int64, copy=False)]
    return named


def mean_pool(states: Array, mask: Array) -> Array:
    """[rows, tokens, n] and [rows, tokens] to [rows, n]; 0 for a row without any token.

    Raises:
        ExecutionFailed: the model gave another number of tokens than the mask has.
    """
    if states.shape[:2] != mask.shape:
        raise ExecutionFailed(f"the model gave {list(states.shape)} for a mask of {list(mask.shape)}: nothing to pool")
    wide, kept = _wide(states), (mask != 0)
    sums = np.where(kept[:, :, None], wide, 0).sum(axis=1)
    pooled: Array = sums / np.maximum(kept.sum(axis=1, keepdims=True), 1)
    return pooled.astype(states.dtype, copy=False)


def l2_normalize(vectors: Array) -> Array:
    """Vectors along the last axis, divided by their length."""
    wide = _wide(vectors)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.square(wide).sum(axis=-1, keepdims=True))
        unit: Array = wide / np.maximum(lengths, _SHORTEST)
    return unit.astype(vectors.dtype, copy=False)


def _wide(array: Array) -> np.ndarray[Any, Any]:
    return array.astype(np.float32) if array.dtype == np.float16 else array
