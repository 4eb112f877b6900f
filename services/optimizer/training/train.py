"""The training loop: a model, rows and a config in; the model with better weights out.

Before the first epoch the rows held out are evaluated once, so weights that training only makes worse stay as they
were. Order of rows, split and everything else come from the config's seed: the same bytes each time, also when a run
went on from a checkpoint in between. Only a time budget, and being told to stop, end that.
"""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from msgspec import Struct

from services.optimizer.training import checkpoint, optimizers, schedules, weights
from services.optimizer.training.config import checked
from services.optimizer.training.data import Rows, fitted, fixed_rows
from services.optimizer.training.errors import Diverged, InvalidConfig, InvalidData
from services.optimizer.training.graph import Network
from services.optimizer.training.losses import objective
from services.optimizer.training.progress import NO_HOOKS, Epoch, Hooks, Point, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto
    from torch import Tensor

    from services.optimizer.training.config import Training


@dataclass(frozen=True)
class Trained:
    """The model with the weights that were best, and how it went. `best_epoch` 0: those that it came with."""

    model: ModelProto
    stopped: Stop
    best_epoch: int
    history: tuple[Epoch, ...]
    loss: str
    metric: str
    trained: tuple[str, ...]


class _State(Struct, frozen=True, kw_only=True):
    """What a checkpoint says beside its arrays."""

    run: str
    best_epoch: int
    history: tuple[Epoch, ...]


def train(
    model: ModelProto, rows: Rows, config: Training, hooks: Hooks = NO_HOOKS, *, resume: bytes | None = None
) -> Trained:
    """Train the model on the rows; `resume` goes on from a checkpoint of the same run.

    Raises:
        UnsupportedModel, InvalidConfig, InvalidData, Diverged: as `errors` says.
    """
    with deterministic():
        run = _Run(model, fitted(rows, model), checked(config), hooks)
        if resume is not None:
            run.restore(resume)
        return run.finished()


@contextmanager
def deterministic() -> Iterator[None]:
    """Torch picks algorithms that give the same numbers each time, or refuses."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class _Run:
    """One run: the network, its optimizer, and the best weights so far."""

    def __init__(self, model: ModelProto, rows: Rows, config: Training, hooks: Hooks) -> None:
        self._model, self._config, self._hooks = model, config, hooks
        self._network = Network(model)
        self._output = self._network.outputs[0] if config.output is None else config.output
        if self._output not in self._network.outputs:
            raise InvalidConfig(f"output: {self._output!r} is none of {', '.join(self._network.outputs)}")
        self._objective = objective(model, self._output, rows.targets, config.loss, config.temperature)
        self._train, self._held = rows.split(config.held_out, config.seed)
        self._fixed = fixed_rows(model)
        self._batch_rows = self._fixed or config.batch_rows
        self._trained = tuple(optimizers.chosen(config, self._network.names))
        for name, weight in self._network.parameter_by_name().items():
            weight.requires_grad = name in self._trained
        self._weights = [self._network.parameter_by_name()[name] for name in self._trained]
        self._zeros = [weight.detach() == 0 for weight in self._weights] if config.keep_zeros else []
        self._optimizer = optimizers.optimizer(config.optimizer, self._weights)
        count = len(self._train)
        self._per_epoch = count // self._fixed if self._fixed else math.ceil(count / self._batch_rows)
        if not self._per_epoch:
            raise InvalidData(f"The model takes {self._fixed} rows at once, and there are {count} to train on")
        self._run_digest = _digest(model, rows, config)
        self._best = self._values()
        self._best_epoch = 0
        self._history: tuple[Epoch, ...] = (self._evaluated(0, None),)
        self._began_s = time.monotonic()

    def finished(self) -> Trained:
        """Train to the end."""
        stopped: Stop = "finished"
        for epoch in range(len(self._history), self._config.epochs + 1):
            cut = self._epoch(epoch)
            if cut == "cancelled":
                stopped = cut
                break
            self._checkpoint()
            if cut or self._enough():
                stopped = cut or "early"
                break
        if stopped == "cancelled" and self._held is None:
            self._best = self._values()
        found = {name: value.numpy() for name, value in zip(self._trained, self._best, strict=True)}
        return Trained(
            weights.replaced(self._model, found),
            stopped,
            self._best_epoch,
            self._history,
            self._objective.loss_name,
            self._objective.metric_name,
            self._trained,
        )

    def restore(self, content: bytes) -> None:
        """Stand where the run stood when it gave this checkpoint."""
        about, arrays = checkpoint.unpack(content, _State)
        if about.run != self._run_digest:
            raise InvalidData("The checkpoint is that of another run")
        for index, weight in enumerate(self._weights):
            weight.data.copy_(torch.from_numpy(arrays[f"weight.{index}"]))
        self._best = [torch.from_numpy(arrays[f"best.{index}"]) for index in range(len(self._weights))]
        remembered = {name[6:]: array for name, array in arrays.items() if name.startswith("state.")}
        optimizers.restore(self._optimizer, remembered)
        self._best_epoch, self._history = about.best_epoch, about.history

    def _epoch(self, epoch: int) -> Stop | None:
        """One pass over the rows; why training is to end with it, if it is."""
        losses: list[float] = []
        cut: Stop | None = None
        batches = self._train.batches(self._batch_rows, (self._config.seed, epoch), whole=self._fixed is not None)
        for number, batch in enumerate(batches):
            losses.append(self._step((epoch - 1) * self._per_epoch + number, epoch, batch))
            if self._hooks.should_stop():
                return "cancelled"
            if self._config.budget_s is not None and time.monotonic() - self._began_s > self._config.budget_s:
                cut = "time"
                break
        found = self._evaluated(epoch, float(np.mean(losses)))
        self._keep_if_best(found)
        self._history = (*self._history, found)
        self._hooks.on_epoch(found)
        pruned = self._hooks.prune is not None and self._hooks.prune(found)
        return "early" if pruned else cut

    def _step(self, step: int, epoch: int, batch: Rows) -> float:
        steps = self._per_epoch * self._config.epochs
        rate = self._config.optimizer.learning_rate * schedules.factor(self._config, step, steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._objective.loss(*self._answers(batch))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"The loss is {value} in step {step + 1}, at a learning rate of {rate:g}")
        loss.backward()  # type: ignore[no-untyped-call]
        if self._config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._weights, self._config.clip_norm)
        self._optimizer.step()
        for weight, zeros in zip(self._weights, self._zeros, strict=False):
            weight.data.masked_fill_(zeros, 0.0)
        self._hooks.on_step(Point(step + 1, steps, epoch, value, rate, time.monotonic() - self._began_s))
        return value

    def _answers(self, batch: Rows) -> tuple[Tensor, Tensor]:
        """The network's answers, and those wanted."""
        feeds = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        output = self._network(feeds)[self._output]
        targets = torch.from_numpy(batch.targets)
        return output, targets.to(output.dtype) if targets.is_floating_point() else targets

    @torch.no_grad()
    def _evaluated(self, epoch: int, loss: float | None) -> Epoch:
        if self._held is None:
            return Epoch(epoch=epoch, loss=loss)
        losses, metrics, counts = [], [], []
        for part in self._held.slices(self._fixed):
            answers = self._answers(part)
            losses.append(float(self._objective.loss(*answers)))
            metrics.append(self._objective.metric(*answers))
            counts.append(len(part))
        if not counts:
            raise InvalidData(f"The model takes {self._fixed} rows at once, and {len(self._held)} are held out")
        means = [float(np.average(values, weights=counts)) for values in (losses, metrics)]
        if not math.isfinite(means[0]):
            raise Diverged(f"The loss on the rows held out is {means[0]} after epoch {epoch}")
        return Epoch(epoch=epoch, loss=loss, held_out_loss=means[0], metric=means[1])

    def _keep_if_best(self, found: Epoch) -> None:
        best = self._history[self._best_epoch].held_out_loss
        if best is None or found.held_out_loss is None or found.held_out_loss < best:
            self._best, self._best_epoch = self._values(), found.epoch

    def _enough(self) -> bool:
        patience = self._config.patience
        return self._held is not None and patience is not None and len(self._history) - 1 - self._best_epoch >= patience

    def _values(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self._weights]

    def _checkpoint(self) -> None:
        if self._hooks.on_checkpoint is None:
            return
        arrays = {f"weight.{index}": value.numpy() for index, value in enumerate(self._values())}
        arrays |= {f"best.{index}": value.numpy() for index, value in enumerate(self._best)}
        arrays |= {f"state.{name}": array for name, array in optimizers.state(self._optimizer).items()}
        about = _State(run=self._run_digest, best_epoch=self._best_epoch, history=self._history)
        self._hooks.on_checkpoint(checkpoint.pack(about, arrays))


def _digest(model: ModelProto, rows: Rows, config: Training) -> str:
    """Names the run: all that its result depends on."""
    digest = hashlib.sha256(weights.serialized(model))
    digest.update(msgspec.json.encode(config))
    for name, array in sorted({**rows.inputs, "": rows.targets}.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
