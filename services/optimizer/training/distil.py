"""Distillation: a model learns the answers of another (https://arxiv.org/abs/1503.02531). No labels are needed.

Any upload has a student: its own graph with fewer channels, neurons and heads. It begins with the weights that
pruning leaves (warm), or with fresh ones. Healing is the same with what pruning left of a model and the model itself.

Which loss fits is told from the output: soft cross-entropy behind a softmax or sigmoid, cosine for vectors of length 1,
otherwise the squared error of the scores, which is right for classes and for numbers. For scores of classes
`soft_cross_entropy` with a temperature may be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from services.optimizer.training.config import Config, Seed, Training, checked
from services.optimizer.training.data import Rows, fitted, fixed_rows
from services.optimizer.training.errors import InvalidConfig
from services.optimizer.training.graph import Network
from services.optimizer.training.initial import reinitialised
from services.optimizer.training.progress import NO_HOOKS, Hooks
from services.optimizer.training.prune import Pruned, Pruning, prune
from services.optimizer.training.train import Trained, train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto

    from services.optimizer.training.trace import Feeds
    from services.optimizer.training.weights import Array


class Student(Config, frozen=True, kw_only=True):
    """A smaller network of the teacher's form."""

    pruning: Pruning = Pruning()
    start: Literal["warm", "fresh"] = "warm"
    seed: Seed = 0


@dataclass(frozen=True)
class Distilled:
    """The student after training, how it was made smaller, and how training went."""

    model: ModelProto
    pruned: Pruned
    trained: Trained


def distil(
    teacher: ModelProto,
    inputs: Mapping[str, Array],
    answers: Array,
    student: Student,
    training: Training,
    hooks: Hooks = NO_HOOKS,
    *,
    feeds: Sequence[Feeds] | None = None,
    resume: bytes | None = None,
) -> Distilled:
    """Make a student of the teacher, and train it on the teacher's answers to the inputs.

    `answers` are logged ones, or those that `teach` gives. `feeds` as `prune` takes them, `resume` as `train` does.

    Raises:
        UnsupportedModel, NotPrunable, InvalidConfig, InvalidData, Diverged: as `errors` says.
    """
    checked(student)
    rows = Rows(inputs, answers)
    made = prune(teacher, student.pruning, rows, feeds=feeds)
    begun = reinitialised(made.model, student.seed) if student.start == "fresh" else made.model
    trained = train(begun, rows, training, hooks, resume=resume)
    return Distilled(trained.model, made, trained)


def heal(
    pruned: ModelProto,
    original: ModelProto,
    inputs: Mapping[str, Array],
    training: Training,
    hooks: Hooks = NO_HOOKS,
    *,
    resume: bytes | None = None,
) -> Trained:
    """Train what pruning left on what the model answered before. Raises as `distil`."""
    answers = teach(original, inputs, training.output)
    return train(pruned, Rows(inputs, answers), training, hooks, resume=resume)


def teach(model: ModelProto, inputs: Mapping[str, Array], output: str | None = None) -> Array:
    """The model's answers to the inputs, from its first output or the one named.

    A model that takes a fixed number of rows answers whole batches only, the last one filled up with copies.

    Raises:
        UnsupportedModel, InvalidConfig, InvalidData: as `errors` says.
    """
    network = Network(model)
    name = output or network.outputs[0]
    if name not in network.outputs:
        raise InvalidConfig(f"output: {name!r} is none of {', '.join(network.outputs)}")
    count = len(next(iter(inputs.values())))
    fixed = fixed_rows(model)
    filled = np.arange(-(-count // fixed) * fixed if fixed else count) % count
    rows = fitted(Rows({each: array[filled] for each, array in inputs.items()}, filled), model)
    parts = [network.predict(part.inputs)[name] for part in rows.slices(fixed)]
    return np.concatenate(parts)[:count]
