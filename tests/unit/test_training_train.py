"""The loop: what it trains, what it leaves alone, when it ends, and that it ends the same each time."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from services.optimizer.training import schedules
from services.optimizer.training.config import (
    Adam,
    AdamW,
    Constant,
    Cosine,
    Optimizer,
    Sgd,
    Steps,
    Training,
    checked,
)
from services.optimizer.training.data import Rows
from services.optimizer.training.errors import Diverged, InvalidConfig, InvalidData
from services.optimizer.training.losses import Objective, kind
from services.optimizer.training.progress import Hooks
from services.optimizer.training.train import train
from services.optimizer.training.weights import floats, serialized
from support.trained import accuracy, digits, untrained

torch.set_num_threads(1)
QUICK = Training(optimizer=AdamW(learning_rate=5e-3), epochs=3)


def with_(config=QUICK, **fields):
    return msgspec.structs.replace(config, **fields)


def few(count=200):
    return digits()[0].take(np.arange(count))


@pytest.mark.parametrize(
    "optimizer",
    [
        Sgd(learning_rate=0.1, momentum=0.0, nesterov=False),
        Sgd(learning_rate=0.05, nesterov=False),
        Sgd(learning_rate=0.05, weight_decay=1e-4),
        Adam(learning_rate=5e-3),
        AdamW(learning_rate=5e-3, weight_decay=0.1),
    ],
)
def test_each_optimizer_learns_the_digits(optimizer):
    trained = train(untrained("mlp"), digits()[0], with_(optimizer=optimizer, epochs=6))
    assert accuracy(trained.model) > 0.8
    assert (trained.loss, trained.metric, trained.stopped) == ("cross_entropy", "accuracy", "finished")
    losses = [epoch.held_out_loss for epoch in trained.history]
    assert trained.best_epoch == int(np.argmin(losses))
    assert trained.history[-1].loss < trained.history[1].loss


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    first, again = (serialized(train(untrained("cnn"), few(), QUICK).model) for _ in range(2))
    assert first == again
    assert serialized(train(untrained("cnn"), few(), with_(seed=1)).model) != first


@pytest.mark.parametrize("optimizer", [Sgd(learning_rate=0.05), AdamW(learning_rate=5e-3)])
def test_a_run_that_goes_on_from_a_checkpoint_gives_the_same_bytes(optimizer):
    config, saved = with_(optimizer=optimizer, epochs=4), []
    whole = train(untrained("mlp"), few(), config, Hooks(on_checkpoint=saved.append))
    steps = []
    rest = train(untrained("mlp"), few(), config, Hooks(on_step=steps.append), resume=saved[1])
    assert steps[0].epoch == 3
    assert serialized(rest.model) == serialized(whole.model)
    assert rest.history == whole.history
    with pytest.raises(InvalidData, match="another run"):
        train(untrained("mlp"), few(), with_(config, seed=1), resume=saved[1])
    with pytest.raises(InvalidData, match="Not a checkpoint"):
        train(untrained("mlp"), few(), config, resume=b"garbage")


def test_frozen_weights_stay_and_the_others_move():
    before = floats(untrained("cnn"))
    trained = train(untrained("cnn"), few(), with_(freeze=("0.*", "2.*")))
    after = floats(trained.model)
    assert trained.trained == ("6.weight", "6.bias", "8.weight", "8.bias")
    for name, array in before.items():
        assert np.array_equal(array, after[name]) == (name not in trained.trained)
    with pytest.raises(InvalidConfig, match="leaves no weight"):
        train(untrained("cnn"), few(), with_(train=("nothing*",)))


def test_steps_and_epochs_are_told():
    steps, epochs = [], []
    train(untrained("mlp"), few(), with_(held_out=0.2), Hooks(on_step=steps.append, on_epoch=epochs.append))
    assert [point.step for point in steps] == list(range(1, 16))  # 160 rows, 32 at a time, three times
    assert {point.steps for point in steps} == {15}
    assert steps[-1].fraction == 1
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert all(0 <= epoch.metric <= 1 for epoch in epochs)


def test_it_stops_when_told_to():
    steps = []
    trained = train(untrained("mlp"), few(), QUICK, Hooks(on_step=steps.append, should_stop=lambda: len(steps) == 7))
    assert (trained.stopped, len(steps)) == ("cancelled", 7)


def test_it_stops_when_its_time_is_spent():
    trained = train(untrained("mlp"), few(), with_(epochs=10_000, patience=None, budget_s=0.05))
    assert trained.stopped == "time"
    assert 2 <= len(trained.history) < 10_000


def test_it_stops_early_and_keeps_the_best():
    """At this rate the first epoch is the best one that there will be, or none is."""
    config = with_(optimizer=Sgd(learning_rate=3.0, momentum=0.0, nesterov=False), epochs=50, patience=2, clip_norm=1.0)
    trained = train(untrained("mlp"), few(), with_(config, schedule=Constant()))
    assert trained.stopped == "early"
    assert len(trained.history) == trained.best_epoch + 3


def test_what_training_only_makes_worse_stays_as_it_was():
    config = with_(optimizer=Sgd(learning_rate=90.0), clip_norm=100.0, epochs=2)
    trained = train(untrained("mlp"), few(), config)
    assert trained.best_epoch == 0
    assert serialized(trained.model) == serialized(untrained("mlp"))


def test_a_run_that_leaves_the_numbers_says_so():
    numbers = Rows(few().inputs, np.full((200, 10), 1e30, np.float32))
    with pytest.raises(Diverged, match="The loss is inf in step 1, at a learning rate of"):
        train(untrained("mlp"), numbers, with_(held_out=0.0))


def test_the_held_out_part_has_every_class_in_its_share():
    rows = digits()[0]
    kept, held = rows.split(0.2, seed=3)
    assert len(kept) + len(held) == len(rows)
    shares = np.bincount(held.targets, minlength=10) / np.bincount(rows.targets, minlength=10)
    assert np.all(np.abs(shares - 0.2) < 0.02)
    with pytest.raises(InvalidData, match="one part empty"):
        rows.take(np.arange(2)).split(0.1, seed=0)


def test_clipped_gradients_are_no_longer_than_allowed():
    """With plain descent at rate 1 a step is as long as the gradient."""
    config = with_(
        optimizer=Sgd(learning_rate=1.0, momentum=0.0, nesterov=False),
        schedule=Constant(),
        epochs=1,
        batch_rows=200,
        held_out=0.0,
        clip_norm=0.01,
    )  # fmt: skip - one call
    before, after = floats(untrained("mlp")), floats(train(untrained("mlp"), few(), config).model)
    length = np.sqrt(sum(((after[name] - array) ** 2).sum() for name, array in before.items()))
    assert length == pytest.approx(0.01, rel=1e-3)


def test_matrices_decay_and_biases_do_not():
    """Labels that no row has an opinion on: the loss is flat where everything is frozen but decay."""
    config = with_(optimizer=AdamW(learning_rate=1e-6, weight_decay=10.0), schedule=Constant(), epochs=1, held_out=0.0)
    before, after = floats(untrained("mlp")), floats(train(untrained("mlp"), few(), config).model)
    steps, rate = 7, 1e-6
    for name, array in before.items():
        decayed = array * (1 - 10 * rate) ** steps if array.ndim > 1 else array
        np.testing.assert_allclose(after[name], decayed, atol=1.05 * steps * rate)
    assert np.abs(after["1.weight"]).sum() < np.abs(before["1.weight"]).sum()


def test_learning_rates_follow_their_schedule():
    def rates(**fields):
        return [schedules.factor(with_(epochs=10, **fields), step, 100) for step in range(100)]

    assert rates(schedule=Constant()) == [1.0] * 100
    cosine = rates(schedule=Cosine(final=0.1))
    assert cosine[0] == 1
    assert cosine[50] == pytest.approx(0.55)
    assert sorted(cosine, reverse=True) == cosine
    assert min(cosine) > 0.1
    steps = rates(schedule=Steps(every=4, factor=0.5))
    assert (steps[39], steps[40], steps[80]) == (1, 0.5, 0.25)
    warm = rates(schedule=Constant(), warmup=0.2)
    assert warm[:20] == pytest.approx(np.arange(1, 21) / 21)
    assert set(warm[20:]) == {1.0}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ('{"epochs": 0}', r"\$\.epochs"),
        ('{"optimizer": {"kind": "sgd", "learning_rate": -1}}', r"\$\.optimizer\.learning_rate"),
        ('{"optimizer": {"kind": "adagrad"}}', r"\$\.optimizer\.kind"),
        ('{"optimizer": {"kind": "sgd", "momentum": 0}}', r"nesterov needs a momentum"),
        ('{"schedule": {"kind": "steps", "every": 0}}', r"\$\.schedule\.every"),
        ('{"held_out": 1.0}', r"\$\.held_out"),
        ('{"lerning_rate": 1}', "lerning_rate"),
    ],
)
def test_json_that_is_wrong_names_the_field(document, field):
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.json.decode(document, type=Training)


def test_a_config_that_is_wrong_names_the_field():
    with pytest.raises(InvalidConfig, match=r"^optimizer\.learning_rate: "):
        checked(Training(optimizer=AdamW(learning_rate=float("nan"))))
    with pytest.raises(InvalidConfig, match=r"^batch_rows: "):
        train(untrained("mlp"), few(), with_(batch_rows=0))
    with pytest.raises(InvalidConfig, match="output: 'none' is none of scores"):
        train(untrained("mlp"), few(), with_(output="none"))


def test_configs_survive_json():
    for optimizer in (Sgd(momentum=0.5), Adam(), AdamW(beta2=0.95)):
        config = with_(optimizer=optimizer, schedule=Steps(every=2), clip_norm=1.0)
        assert msgspec.json.decode(msgspec.json.encode(config), type=Training) == config
        assert isinstance(optimizer, Optimizer)


def test_rows_that_do_not_fit_are_refused():
    images, labels = few().inputs["image"], few().targets
    with pytest.raises(InvalidData, match="differ in number"):
        Rows({"image": images}, labels[:-1])
    with pytest.raises(InvalidData, match="'image' is missing"):
        train(untrained("mlp"), Rows({"picture": images}, labels), QUICK)
    with pytest.raises(InvalidData, match="Labels 0 to 10 for 10 classes"):
        train(untrained("mlp"), Rows({"image": images}, np.minimum(labels + (labels == 9), 10)), QUICK)
    with pytest.raises(InvalidData, match=r"the targets are \[.*3\]"):
        train(untrained("mlp"), Rows({"image": images}, images.reshape(200, -1)[:, :3]), QUICK)


def test_losses_fit_what_an_output_is():
    assert kind(untrained("encoder"), "scores") == "probabilities"
    assert kind(untrained("cnn"), "scores") == "scores"
    scores, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    wanted = Objective("cross_entropy", "scores").loss(scores, labels)
    for form, output in (("probabilities", scores.softmax(-1)), ("log_probabilities", scores.log_softmax(-1))):
        assert float(Objective("cross_entropy", form).loss(output, labels)) == pytest.approx(float(wanted), rel=1e-5)
    for name, least in (("soft_cross_entropy", 0), ("mse", 0), ("cosine", 0)):
        assert float(Objective(name, "scores", 2.0).loss(scores, scores)) == pytest.approx(least, abs=1e-6)
        assert float(Objective(name, "scores").loss(scores, scores.roll(1, 0))) > 0.01


def test_yes_or_no_is_learned_from_one_column():
    logits, labels = torch.tensor([[2.0], [-3.0]]), torch.tensor([1, 0])
    objective = Objective("cross_entropy", "scores")
    assert float(objective.loss(logits, labels)) < 0.1
    assert objective.metric(logits, labels) == 1
    assert objective.metric(-logits, labels) == 0
    odds = Objective("cross_entropy", "odds")
    assert float(odds.loss(torch.sigmoid(logits), labels)) == pytest.approx(float(objective.loss(logits, labels)))
    with pytest.raises(InvalidData, match="yes or no"):
        objective.loss(logits, torch.tensor([1, 2]))
