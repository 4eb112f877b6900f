"""What trains: pruning with healing, students, updates. From a step's description to the training and back.

Rows come from the data set, never from the part that is judged by. Progress and curves are told after each step of the
training; its state is kept now and then (`lessons`), so that another child can go on there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import onnx

from services.optimizer.actions import Distil, Prune, Sparsify, Train
from services.optimizer.messages import WARM_START_FILE, Found
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.training import config as configs
from services.optimizer.training import transfer
from services.optimizer.training.data import Rows
from services.optimizer.training.distil import Student, distil, heal, teach
from services.optimizer.training.errors import TrainingError
from services.optimizer.training.progress import Hooks
from services.optimizer.training.prune import Pruning, prune
from services.optimizer.training.search import Search, Trial, search
from services.optimizer.training.sparsify import Sparsity, sparsify
from services.optimizer.training.train import train

if TYPE_CHECKING:
    from onnx import ModelProto

    from services.optimizer.sandbox.datasets import DataSet
    from services.optimizer.sandbox.lessons import Lessons
    from shared.optimization import Training
    from shared.tensors import Array

_HEALING: Final = configs.Training(
    optimizer=configs.AdamW(learning_rate=2e-3, weight_decay=0.0), clip_norm=1.0, patience=None, held_out=0.1
)
_EPOCHS: Final = 10
_STEPS: Final = 200
"""An update's training has at least so many, however few its rows are."""
_HELD_OUT: Final = 0.2
_MANY_ROWS: Final = 200
_LEAST_STEPS: Final[dict[type, int]] = {Prune: 800, Distil: 2500}
"""Few rows are gone through more often: it is steps that teach, not epochs."""


def shrunk(
    action: Prune | Distil | Sparsify, model: ModelProto, learnt: DataSet | None, lessons: Lessons
) -> tuple[ModelProto, dict[str, Any]]:
    """A smaller form of the model that answers like it, and how that went.

    Raises:
        NotBuilt: there are no data, or training does not know this model.
    """
    try:
        if isinstance(action, Sparsify):
            made = sparsify(model, Sparsity(ratio=action.share))
            return made.model, {
                "zeros": made.zeros,
                "parameters": made.parameters,
                "compressed_bytes": [made.compressed_before_bytes, made.compressed_after_bytes],
            }
        if learnt is None:
            raise NotBuilt("it is trained on data, and there are none")
        seed = lessons.job.seed % 2**32
        epochs = max(action.epochs, -(-_LEAST_STEPS[type(action)] * _HEALING.batch_rows // len(learnt)))
        training = msgspec.structs.replace(_HEALING, epochs=epochs, seed=seed)
        inputs = dict(learnt.inputs)
        if isinstance(action, Prune):
            pruned = prune(model, Pruning(ratio=action.share))
            trained = heal(pruned.model, model, inputs, training, lessons.hooks(), resume=lessons.resume())
        else:
            student = Student(pruning=Pruning(ratio=1 - action.width), seed=seed)
            answers = teach(model, inputs)
            made_of = distil(model, inputs, answers, student, training, lessons.hooks(), resume=lessons.resume())
            pruned, trained = made_of.pruned, made_of.trained
    except TrainingError as err:
        raise NotBuilt(f"{err.code}: {err}") from err
    return trained.model, {
        "parameters": [pruned.parameters_before, pruned.parameters_after],
        "stopped": trained.stopped,
        "best_epoch": trained.best_epoch,
        "loss": trained.loss,
    }


def updated(action: Train, model: ModelProto, learnt: DataSet, lessons: Lessons) -> tuple[ModelProto, dict[str, Any]]:
    """An update's model, trained from its parent's, and how that went.

    Raises:
        TrainingError: as `training.errors` says.
    """
    asked = action.training
    chosen: dict[str, Any] = {}
    seed = lessons.job.seed % 2**32
    if asked.warm_start is not None:
        warm = transfer.warm_start(model, onnx.load_model(WARM_START_FILE))
        model, chosen["copied"] = warm.model, len(warm.copied)
    if asked.classes is not None:
        model = transfer.new_head(model, asked.classes).model
    rows = Rows(dict(learnt.inputs), _targets(learnt, model))
    training = config(asked, seed, len(rows))
    if asked.search is not None:
        found = search(
            model,
            rows,
            training,
            Search(trials=asked.search.trials, budget_s=asked.search.budget_s, seed=seed),
            Hooks(on_step=lambda point: lessons.say("search", point.fraction, {})),
            on_trial=lambda trial: _tell(trial, lessons),
            done=[msgspec.json.decode(text, type=Trial) for text in lessons.job.trials],
        )
        training = found.training
        chosen["trials"] = len(found.trials)
    trained = train(model, rows, training, lessons.hooks(), resume=lessons.resume())
    chosen |= {
        "optimizer": msgspec.to_builtins(training.optimizer),
        "stopped": trained.stopped,
        "best_epoch": trained.best_epoch,
        "loss": trained.loss,
        "metric": trained.metric,
        "history": [msgspec.to_builtins(epoch) for epoch in trained.history[-50:]],
    }
    return trained.model, chosen


def _tell(trial: Trial, lessons: Lessons) -> None:
    """A trial that is done need not be done again."""
    name = f"{lessons.step}.trial.{trial.number}"
    lessons.report(Found(step=name, parameters=msgspec.json.encode(trial).decode()))


def _targets(learnt: DataSet, model: ModelProto) -> Array:
    """What the model is to answer: labels, else the right answers of its first output."""
    if learnt.label is not None:
        return learnt.label
    output = model.graph.output[0].name
    if output not in learnt.targets:
        raise NotBuilt(f"the data have neither 'label' nor {output!r}: there is nothing to learn")
    return learnt.targets[output]


def config(asked: Training, seed: int, rows: int) -> configs.Training:
    """The training that is asked for, of so many rows; what it leaves open is decided by how many there are."""
    held_out = asked.held_out
    if held_out is None:
        held_out = _HELD_OUT if rows >= _MANY_ROWS or asked.search is not None else 0.0
    steps_an_epoch = max(1, -(-round(rows * (1 - held_out)) // asked.batch_rows))
    rate, decay = asked.learning_rate, asked.weight_decay
    optimizers: dict[str, configs.Optimizer] = {
        "sgd": configs.Sgd(learning_rate=rate, momentum=asked.momentum, nesterov=asked.nesterov, weight_decay=decay),
        "adam": configs.Adam(learning_rate=rate, weight_decay=decay),
        "adamw": configs.AdamW(learning_rate=rate, weight_decay=decay),
    }
    schedules: dict[str, configs.Schedule] = {
        "constant": configs.Constant(),
        "cosine": configs.Cosine(),
        "steps": configs.Steps(),
    }
    return configs.Training(
        optimizer=optimizers[asked.optimizer],
        schedule=schedules[asked.schedule],
        warmup=asked.warmup,
        epochs=asked.epochs or max(_EPOCHS, -(-_STEPS // steps_an_epoch)),
        batch_rows=asked.batch_rows,
        clip_norm=asked.clip_norm,
        loss=asked.loss,
        held_out=held_out,
        patience=asked.patience,
        train=asked.train,
        freeze=asked.freeze,
        seed=seed,
    )
