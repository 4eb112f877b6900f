"""How much a group of places matters, as a number for each group, at its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from services.optimizer.training.data import fitted, fixed_rows
from services.optimizer.training.losses import objective

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from onnx import ModelProto

    from services.optimizer.training.data import Rows
    from services.optimizer.training.graph import Network
    from services.optimizer.training.structures import Structures
    from services.optimizer.training.weights import Array

    Scores = npt.NDArray[np.float64]

_BATCH_ROWS: Final = 32


def magnitude(network: Network, found: Structures) -> Scores:
    """The Euclidean length of all weights that belong to the group."""
    squares = {name: array.astype(np.float64) ** 2 for name, array in network.weights().items()}
    return np.sqrt(_summed(squares, found))


def taylor(model: ModelProto, network: Network, found: Structures, rows: Rows) -> Scores:
    """The square of how much the loss changes without the group, to first order, summed over batches of rows.

    The loss is the one that fits the rows' targets.
    """
    rows = fitted(rows, model)
    output = network.outputs[0]
    goal = objective(model, output, rows.targets, "auto", 1.0)
    scores = np.zeros(len(found.group))
    for batch in rows.slices(fixed_rows(model) or _BATCH_ROWS):
        network.zero_grad(set_to_none=True)
        said = network({name: torch.from_numpy(array) for name, array in batch.inputs.items()})[output]
        goal.loss(said, torch.from_numpy(batch.targets)).backward()  # type: ignore[no-untyped-call]
        changes = {
            name: (weight * weight.grad).detach().double().numpy()
            for name, weight in network.parameter_by_name().items()
            if weight.grad is not None
        }
        scores += _summed(changes, found) ** 2
    return scores


def _summed(arrays: Mapping[str, Array], found: Structures) -> Scores:
    """Numbers of weights, added up by group."""
    scores = np.zeros(len(found.group))
    for (name, axis), places in found.coupling.axes.items():
        if name in arrays:
            array = arrays[name]
            others = tuple(other for other in range(array.ndim) if other != axis)
            np.add.at(scores, found.group[places], array.sum(axis=others))
    return scores
