"""The learning rate of a step, as a factor of the configured one. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from services.optimizer.training.config import Constant, Cosine

if TYPE_CHECKING:
    from services.optimizer.training.config import Training


def factor(config: Training, step: int, steps: int) -> float:
    """The factor in step `step` of `steps`, from 0 on: a linear warm-up, then the schedule over what is left."""
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    schedule = config.schedule
    if isinstance(schedule, Constant):
        return 1.0
    if isinstance(schedule, Cosine):
        share = (step - warm) / max(1, steps - warm)
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * share)) / 2
    epoch = step * config.epochs // steps
    return float(schedule.factor ** (epoch // schedule.every))
