"""What a training run tells while it runs, and what it can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

Stop = Literal["finished", "early", "time", "cancelled"]
"""All epochs done; no better for `patience` epochs; the budget is spent; `should_stop` said so."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step: the loss is that of its batch."""

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    seconds: float

    @property
    def fraction(self) -> float:
        """The share of the run's steps that is done."""
        return self.step / self.steps


class Epoch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pass, from 1 on; 0 is before the first. `loss` is the mean over its batches, None before the first.

    The rest is of the rows held out, None without any.
    """

    epoch: int
    loss: float | None
    held_out_loss: float | None = None
    metric: float | None = None


def _nothing(_: object) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Hooks:
    """Called in the run's own thread: after each step, and after each epoch with what `resume` takes.

    `should_stop` is asked after each step; `prune` after each epoch, and ends the run as `early`.
    """

    on_step: Callable[[Point], None] = _nothing
    on_epoch: Callable[[Epoch], None] = _nothing
    on_checkpoint: Callable[[bytes], None] | None = None
    should_stop: Callable[[], bool] = _never
    prune: Callable[[Epoch], bool] | None = None


NO_HOOKS = Hooks()
