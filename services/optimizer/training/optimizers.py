"""Torch's optimizers for a config, and their state as arrays."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

import torch

from services.optimizer.training.config import Sgd
from services.optimizer.training.errors import InvalidConfig, InvalidData

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from services.optimizer.training.config import Adam, AdamW, Optimizer, Training
    from services.optimizer.training.weights import Array

_MATRIX: Final = 2


def chosen(config: Training, names: Iterable[str]) -> list[str]:
    """Those of the weights that are trained.

    Raises:
        InvalidConfig: none is.
    """
    found = [name for name in names if matches(name, config.train) and not matches(name, config.freeze)]
    if not found:
        raise InvalidConfig(f"train: {', '.join(config.train)} without {', '.join(config.freeze)} leaves no weight")
    return found


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def optimizer(config: Optimizer, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer for these weights; matrices and kernels decay, vectors do not."""
    groups = [
        {"params": [weight for weight in weights if weight.dim() >= _MATRIX], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.dim() < _MATRIX], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(config, Sgd):
        return torch.optim.SGD(groups, config.learning_rate, config.momentum, nesterov=config.nesterov)
    return _adam(config)(groups, config.learning_rate, (config.beta1, config.beta2))


def _adam(config: Adam | AdamW) -> type[torch.optim.Adam]:
    kinds: dict[str, type[torch.optim.Adam]] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    return kinds[type(config).__name__]


def state(made: torch.optim.Optimizer) -> dict[str, Array]:
    """What it remembers of each weight."""
    remembered = made.state_dict()["state"]
    return {
        f"{index}.{key}": value.detach().numpy().copy()
        for index, entries in sorted(remembered.items())
        for key, value in entries.items()
        if isinstance(value, torch.Tensor)
    }


def restore(made: torch.optim.Optimizer, arrays: Mapping[str, Array]) -> None:
    """Put back what `state` gave.

    Raises:
        InvalidData: it is that of another run.
    """
    found: dict[int, dict[str, Any]] = {}
    for name, array in arrays.items():
        index, _, key = name.partition(".")
        found.setdefault(int(index), {})[key] = torch.from_numpy(array.copy())
    try:
        made.load_state_dict({"state": found, "param_groups": made.state_dict()["param_groups"]})
    except ValueError as err:
        raise InvalidData(f"The checkpoint is that of another run: {err}") from err
