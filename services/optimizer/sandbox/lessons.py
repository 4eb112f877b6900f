"""What training tells while it goes on: how far it is, its curves, and now and then its state."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.optimizer.messages import Found, step_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.optimizer.messages import Job
    from services.optimizer.training.progress import Epoch, Hooks, Point

_TELL_S: Final = 0.5


@dataclass(frozen=True)
class Lessons:
    """Whom training tells, and with what it may go on."""

    job: Job
    step: str
    say: Callable[[str, float, Mapping[str, tuple[int, float]]], None]
    report: Callable[[Found], None]

    def hooks(self) -> Hooks:
        """Of one training run, which ends in time.

        That is not said in the run's config: a state is one of a config, and what time is left differs when another
        child goes on with it.
        """
        from services.optimizer.training.progress import Hooks  # noqa: PLC0415 - its package is only there to train

        told_s = kept_s = time.monotonic()
        epochs = 0
        budget_s = self.job.training_budget_s
        until_s = math.inf if budget_s is None else time.monotonic() + budget_s

        def on_step(point: Point) -> None:
            nonlocal told_s
            if time.monotonic() >= told_s + _TELL_S or point.step == point.steps:
                told_s = time.monotonic()
                curves = {"loss/batch": (point.step, point.loss), "learning_rate": (point.step, point.learning_rate)}
                self.say("train", point.fraction, curves)

        def on_epoch(epoch: Epoch) -> None:
            nonlocal epochs
            epochs = epoch.epoch
            known = {"loss/train": epoch.loss, "loss/held_out": epoch.held_out_loss, "metric/held_out": epoch.metric}
            self.say("train", 0.0, {name: (epoch.epoch, value) for name, value in known.items() if value is not None})

        def on_checkpoint(state: bytes) -> None:
            nonlocal kept_s
            if time.monotonic() < kept_s + self.job.checkpoint_s:
                return
            kept_s = time.monotonic()
            name = f"{self.step}.{epochs}"
            Path(step_file(name)).write_bytes(state)
            self.report(Found(step=name, file=True))

        return Hooks(on_step, on_epoch, on_checkpoint, lambda: time.monotonic() > until_s)

    def resume(self) -> bytes | None:
        """The state that an earlier child left."""
        name = self.job.checkpoint
        if name is None or not name.startswith(f"{self.step}."):
            return None
        return Path(step_file(name)).read_bytes()
