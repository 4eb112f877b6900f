"""Unstructured pruning: the smallest weights become 0, and stay where they are.

What it gives, said plainly: the file keeps its size and ONNX Runtime its time, since zeros are stored and multiplied
like any number. Only a compressed copy of the file is smaller, which helps where it is sent. `Sparsified` has the
figures of both. Train with `keep_zeros` afterwards to heal it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
from msgspec import Meta

from services.optimizer.training.config import Config, Patterns, checked
from services.optimizer.training.errors import NotPrunable
from services.optimizer.training.graph import Network
from services.optimizer.training.optimizers import matches
from services.optimizer.training.weights import replaced, serialized

if TYPE_CHECKING:
    from onnx import ModelProto

_MATRIX: Final = 2


class Sparsity(Config, frozen=True, kw_only=True):
    """`ratio` of all numbers in matrices and kernels, the smallest over all layers."""

    ratio: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    keep: Patterns = ()
    """Weights of such a name stay as they are."""


@dataclass(frozen=True)
class Sparsified:
    """The model, and what the zeros give: sizes in bytes, as files and as files deflated."""

    model: ModelProto
    zeros: int
    parameters: int
    size_before_bytes: int
    size_after_bytes: int
    compressed_before_bytes: int
    compressed_after_bytes: int


def sparsify(model: ModelProto, config: Sparsity) -> Sparsified:
    """Write zeros in place of the smallest weights.

    Raises:
        UnsupportedModel, InvalidConfig: as `errors` says.
        NotPrunable: there is no matrix.
    """
    checked(config)
    weights = Network(model).weights()
    chosen = {
        name: array for name, array in weights.items() if array.ndim >= _MATRIX and not matches(name, config.keep)
    }
    if not chosen:
        raise NotPrunable("The model has no matrix whose numbers could become 0")
    sizes = np.concatenate([np.abs(array).ravel() for array in chosen.values()])
    bound = np.partition(sizes, int(len(sizes) * config.ratio))[int(len(sizes) * config.ratio)]
    sparse = {name: np.where(np.abs(array) < bound, array.dtype.type(0), array) for name, array in chosen.items()}
    made = replaced(model, sparse)
    before, after = serialized(model), serialized(made)
    return Sparsified(
        made,
        sum(int((array == 0).sum()) for array in sparse.values()),
        sum(array.size for array in weights.values()),
        len(before),
        len(after),
        len(zlib.compress(before)),
        len(zlib.compress(after)),
    )
