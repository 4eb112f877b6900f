"""A search for learning rate and weight decay, by short training runs that are judged on the rows held out.

Optuna (https://optuna.org) proposes and gives up: tree-structured Parzen estimators, and the median of earlier trials.
It proposes one trial at a time to whoever asks, so that cancel, budget and resume are ours; studies live in memory.
What else was weighed is in docs/training.md.

The first trial is the training as it was given. Each further one is drawn with a seed of its own, from the search's
seed and its number, so the same trials follow from the same history, also when the search goes on elsewhere.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import optuna
from msgspec import Meta, Struct
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from services.optimizer.training.config import Config, Rate, Seed, Training, checked
from services.optimizer.training.errors import Diverged, InvalidConfig
from services.optimizer.training.progress import NO_HOOKS, Epoch, Hooks
from services.optimizer.training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx import ModelProto

    from services.optimizer.training.data import Rows

Positive = Annotated[float, Meta(gt=0, le=10)]
_FIRST_TRIALS: Final = 4
"""Drawn at random, before there is a history to learn from."""


class Search(Config, frozen=True, kw_only=True):
    """How long to look, and where: both ranges are searched by their logarithm."""

    trials: Annotated[int, Meta(ge=1, le=1000)] = 12
    budget_s: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """After this time no further trial begins, and the one under way ends without counting."""
    learning_rate: tuple[Rate, Rate] = (1e-4, 1e-1)
    weight_decay: tuple[Positive, Positive] = (1e-6, 1e-1)
    give_up: bool = True
    """End a trial that is worse than the median of the earlier ones at the same epoch."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name, (low, high) in (("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay)):
            if not low < high:
                raise ValueError(f"{name} goes from {low:g} to {high:g}")


class Trial(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run: the loss on the rows held out after each epoch, the last one first known as the best."""

    number: int
    learning_rate: float
    weight_decay: float
    curve: tuple[float, ...]
    state: Literal["complete", "given_up", "diverged"]

    @property
    def value(self) -> float:
        """The least loss; infinite for one that diverged."""
        return min(self.curve, default=math.inf) if self.state != "diverged" else math.inf


@dataclass(frozen=True)
class Found:
    """The training with the rates of the best trial, and all trials."""

    training: Training
    trials: tuple[Trial, ...]


def _nothing(_: Trial) -> None:
    pass


def search(
    model: ModelProto,
    rows: Rows,
    training: Training,
    config: Search,
    hooks: Hooks = NO_HOOKS,
    *,
    on_trial: Callable[[Trial], None] = _nothing,
    done: Sequence[Trial] = (),
) -> Found:
    """Look for better rates for this training. `done` are trials of the same search that need not be done again.

    Of the hooks `on_step`, `on_epoch` and `should_stop` are passed to each run.

    Raises:
        InvalidConfig: a field is wrong, or nothing is held out.
        Diverged: every trial did.
        UnsupportedModel, InvalidData: as `errors` says.
    """
    checked(config)
    if not checked(training).held_out:
        raise InvalidConfig("held_out: a search needs rows to judge by")
    looking = _Search(model, rows, training, config, hooks)
    trials = [*done]
    for each in done:
        looking.remember(each)
    while len(trials) < config.trials and not looking.over():
        trial = looking.next(len(trials))
        if trial is None:
            break
        trials.append(trial)
        on_trial(trial)
    best = min(trials, key=lambda trial: trial.value, default=None)
    if best is None:
        return Found(training, ())
    if not math.isfinite(best.value):
        raise Diverged(f"All {len(trials)} trials diverged: search at smaller learning rates, or clip gradients")
    return Found(_with_rates(training, best.learning_rate, best.weight_decay), tuple(trials))


class _Search:
    def __init__(self, model: ModelProto, rows: Rows, training: Training, config: Search, hooks: Hooks) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._model, self._rows, self._training, self._config, self._hooks = model, rows, training, config, hooks
        give_up = optuna.pruners.MedianPruner(n_startup_trials=_FIRST_TRIALS, n_warmup_steps=1)
        self._study = optuna.create_study(pruner=give_up if config.give_up else optuna.pruners.NopPruner())
        self._ranges: dict[str, BaseDistribution] = {
            "learning_rate": FloatDistribution(*config.learning_rate, log=True),
            "weight_decay": FloatDistribution(*config.weight_decay, log=True),
        }
        self._began_s = time.monotonic()

    def over(self) -> bool:
        """Whether no more is to be done."""
        spent = self._config.budget_s is not None and time.monotonic() - self._began_s > self._config.budget_s
        return spent or self._hooks.should_stop()

    def remember(self, trial: Trial) -> None:
        """Learn from a trial that was done elsewhere."""
        state = {"complete": TrialState.COMPLETE, "given_up": TrialState.PRUNED, "diverged": TrialState.FAIL}
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state[trial.state],
                value=trial.value if trial.state == "complete" else None,
                params={"learning_rate": trial.learning_rate, "weight_decay": trial.weight_decay},
                distributions=self._ranges,
                intermediate_values=dict(enumerate(trial.curve)),
            )
        )

    def next(self, number: int) -> Trial | None:
        """Do one trial; None if time is over before it is done."""
        self._study.sampler = optuna.samplers.TPESampler(
            seed=self._config.seed + number, n_startup_trials=_FIRST_TRIALS
        )
        if not number:
            self._study.enqueue_trial(self._given())
        asked = self._study.ask(self._ranges)
        return self._run(asked, number)

    def _given(self) -> dict[str, float]:
        """The training's own rates, within the ranges."""
        ranges = self._config.learning_rate, self._config.weight_decay
        mine = self._training.optimizer.learning_rate, self._training.optimizer.weight_decay
        rate, decay = (min(max(value, low), high) for value, (low, high) in zip(mine, ranges, strict=True))
        return {"learning_rate": rate, "weight_decay": decay}

    def _run(self, asked: optuna.Trial, number: int) -> Trial | None:
        rates = asked.params["learning_rate"], asked.params["weight_decay"]
        curve: list[float] = []
        gave_up = False

        def worse(epoch: Epoch) -> bool:
            nonlocal gave_up
            curve.append(float(epoch.held_out_loss or 0.0))
            asked.report(curve[-1], len(curve) - 1)
            gave_up = asked.should_prune()
            return gave_up

        hooks = Hooks(self._hooks.on_step, self._hooks.on_epoch, None, self.over, worse)
        state: Literal["complete", "given_up", "diverged"]
        try:
            stopped = train(self._model, self._rows, _with_rates(self._training, *rates), hooks).stopped
            if stopped in ("cancelled", "time"):
                return None
            state = "given_up" if gave_up else "complete"
        except Diverged:
            state = "diverged"
        trial = Trial(number=number, learning_rate=rates[0], weight_decay=rates[1], curve=tuple(curve), state=state)
        ends = {"complete": TrialState.COMPLETE, "given_up": TrialState.PRUNED, "diverged": TrialState.FAIL}
        self._study.tell(asked, trial.value if state == "complete" else None, ends[state])
        return trial


def _with_rates(training: Training, learning_rate: float, weight_decay: float) -> Training:
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return msgspec.structs.replace(training, optimizer=msgspec.structs.replace(training.optimizer, **rates))
