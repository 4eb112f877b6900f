"""What is learned from other models, and how rates are searched."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from onnx import helper

from services.optimizer.sandbox import learning
from services.optimizer.training.config import AdamW, Training
from services.optimizer.training.data import Rows
from services.optimizer.training.distil import Student, distil, teach
from services.optimizer.training.errors import InvalidConfig, NoHead
from services.optimizer.training.initial import reinitialised
from services.optimizer.training.progress import Hooks
from services.optimizer.training.prune import Pruning
from services.optimizer.training.search import Search, Trial, search
from services.optimizer.training.train import train
from services.optimizer.training.transfer import exactly, new_head, softened, warm_start
from services.optimizer.training.weights import floats, replaced, serialized
from shared.optimization import Search as SearchAsked
from shared.optimization import Training as Update
from support.trained import NETWORKS, accuracy, answers, digits, minilm, trained, untrained

torch.set_num_threads(1)
LOGGED = 300
DISTIL = Training(optimizer=AdamW(learning_rate=5e-3), epochs=60, batch_rows=16, held_out=0.1, patience=20)


def logged():
    """Requests, and what the teacher answered to them."""
    images = digits()[0].inputs["image"][:LOGGED]
    return {"image": images}, answers(trained("cnn"), {"image": images})[0]


def test_a_student_of_300_requests_is_within_a_point_of_its_teacher():
    inputs, said = logged()
    student = distil(trained("cnn"), inputs, said, Student(pruning=Pruning(ratio=0.6)), DISTIL)
    assert student.pruned.parameters_after * 5 < student.pruned.parameters_before
    assert accuracy(student.model) >= accuracy(trained("cnn")) - 0.01


def test_a_fresh_student_learns_from_soft_targets():
    inputs, said = logged()
    config = msgspec.structs.replace(DISTIL, loss="soft_cross_entropy", temperature=2.0, epochs=30)
    made = Student(pruning=Pruning(ratio=0.5), start="fresh", seed=1)
    student = distil(trained("cnn"), inputs, said, made, config)
    assert (student.trained.loss, student.trained.metric) == ("soft_cross_entropy", "agreement")
    assert accuracy(student.model) > 0.9
    again = distil(trained("cnn"), inputs, said, made, msgspec.structs.replace(config, epochs=1))
    assert serialized(again.model) == serialized(
        distil(trained("cnn"), inputs, said, made, msgspec.structs.replace(config, epochs=1)).model
    )


def test_the_loss_follows_what_the_teacher_answers():
    images = digits()[0].inputs["image"][:64]
    once = Training(epochs=1)
    probabilities = teach(untrained("encoder"), {"image": images})
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    made = distil(untrained("encoder"), {"image": images}, probabilities, Student(), once)
    assert made.trained.loss == "soft_cross_entropy"
    ids = np.random.default_rng(0).integers(1, 100, (48, 8))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    vectors = teach(minilm(), inputs)
    made = distil(minilm(), inputs, vectors, Student(), once)
    assert (made.trained.loss, made.trained.metric) == ("cosine", "cosine")


def test_a_teacher_of_a_fixed_number_of_rows_answers_them_all():
    made = replaced(untrained("mlp"), {})
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    images = {"image": digits()[0].inputs["image"][:21]}
    np.testing.assert_allclose(teach(made, images), teach(untrained("mlp"), images), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_fresh_weights_are_the_seeds_and_of_a_size_that_answers(name):
    fresh = reinitialised(untrained(name), 5)
    assert serialized(fresh) == serialized(reinitialised(untrained(name), 5))
    assert serialized(fresh) != serialized(reinitialised(untrained(name), 6))
    found = answers(fresh, {"image": digits()[0].inputs["image"][:64]})[0]
    assert 0.01 < found.std() < 10


def five(rows, first, each=None, seed=0):
    """Five digits from `first` on as classes 0 to 4, so many of each."""
    order = np.random.default_rng(seed).permutation(len(rows))
    labels = rows.targets[order] - first
    parts = [order[labels == label][:each] for label in range(5)]
    return Rows({"image": rows.inputs["image"][np.concatenate(parts)]}, rows.targets[np.concatenate(parts)] - first)


def test_a_warm_start_copies_what_fits_by_name_and_shape():
    source, target = trained("cnn"), new_head(untrained("cnn"), 5).model
    warm = warm_start(target, source)
    assert warm.copied == ("0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias")
    assert warm.kept == ("8.weight", "8.bias")
    for name in warm.copied:
        np.testing.assert_array_equal(floats(warm.model)[name], floats(source)[name])
    assert warm_start(target, untrained("encoder")).copied == ()


@pytest.mark.parametrize("name", ["concat", "residual"])
def test_five_digits_help_to_learn_five_others_from_ten_labels_each(name):
    """As an update with `classes` does by default, beside the same network and training from fresh weights.

    Over the seeds together; one of them alone may go either way. `docs/training.md` has networks that gain nothing.
    """
    test, network = five(digits()[1], 5), new_head(untrained(name), 5).model
    first = Training(optimizer=AdamW(learning_rate=4e-3), epochs=8, patience=None, held_out=0.1)
    learned = new_head(train(network, five(digits()[0], 0), first).model, 5).model
    gains = []
    for seed in range(5):
        few = five(digits()[0], 5, 10, seed)
        default = learning.config(Update(classes=5), seed, len(few))
        moved, scratch = (train(start, few, default).model for start in (learned, reinitialised(learned, seed)))
        gains.append(accuracy(moved, test) - accuracy(scratch, test))
    assert np.mean(gains) > 0.005, gains
    assert sum(gain > 0 for gain in gains) >= 3, gains


@pytest.mark.parametrize(
    ("rows", "epochs", "held_out"), [(50, 100, 0.0), (199, 29, 0.0), (200, 40, 0.2), (10_000, 10, 0.2), (1, 200, 0.0)]
)
def test_few_rows_are_gone_through_more_often_and_all_of_them(rows, epochs, held_out):
    found = learning.config(Update(), 0, rows)
    assert (found.epochs, found.held_out) == (epochs, held_out)
    assert learning.config(Update(epochs=3, held_out=0.5), 0, rows).epochs == 3
    assert learning.config(Update(search=SearchAsked()), 0, rows).held_out == 0.2


def test_softening_keeps_all_or_nothing_or_some():
    model = new_head(trained("cnn"), 5).model
    assert serialized(softened(model, 1.0, 0)) == serialized(replaced(model, floats(model)))
    half, fresh, before = (floats(each) for each in (softened(model, 0.5, 0), reinitialised(model, 0), model))
    np.testing.assert_allclose(half["2.weight"], (before["2.weight"] + fresh["2.weight"]) / 2, atol=1e-6)
    assert not half["8.weight"].any()
    with pytest.raises(InvalidConfig, match="keep: 2"):
        softened(model, 2.0, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_head_has_as_many_classes_as_asked_for(name):
    headed = new_head(untrained(name), 7)
    images = digits()[0].inputs["image"][:3]
    assert answers(headed.model, {"image": images})[0].shape == (3, 7)
    assert headed.model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value == 7
    shapes = {each: array.shape for each, array in floats(headed.model).items()}
    assert [shapes[each][-1] == 7 or shapes[each][0] == 7 for each in headed.head] == [True] * len(headed.head)


def test_only_the_head_is_trained_if_the_rest_is_frozen():
    headed = new_head(trained("cnn"), 5)
    config = Training(epochs=2, train=exactly(headed.head))
    found = train(headed.model, five(digits()[0], 5, 20), config)
    assert found.trained == headed.head
    before, after = floats(headed.model), floats(found.model)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == list(headed.head)


def test_a_model_without_a_head_is_refused():
    headless = replaced(untrained("cnn"), {})
    del headless.graph.output[:]
    last = headless.graph.node[-2]
    headless.graph.output.append(helper.make_tensor_value_info(last.output[0], 1, None))
    del headless.graph.node[-1]
    with pytest.raises(NoHead, match="comes from Relu"):
        new_head(headless, 5)
    with pytest.raises(InvalidConfig, match="classes: 0"):
        new_head(untrained("cnn"), 0)


LOOK = Search(trials=6, seed=3)
SHORT = Training(epochs=3)


def test_a_search_finds_rates_better_than_bad_ones():
    bad = msgspec.structs.replace(SHORT, optimizer=AdamW(learning_rate=1e-4))
    rows, heard = digits()[0], []
    found = search(untrained("mlp"), rows, bad, LOOK, on_trial=heard.append)
    assert found.trials == tuple(heard)
    assert [trial.number for trial in heard] == list(range(6))
    assert heard[0].learning_rate == pytest.approx(1e-4)  # the first is what was asked for
    best = min(heard, key=lambda trial: trial.value)
    assert found.training.optimizer.learning_rate == best.learning_rate > 1e-4
    assert msgspec.structs.replace(found.training, optimizer=bad.optimizer) == bad


def test_a_search_is_the_same_each_time_and_after_a_break():
    rows = digits()[0].take(np.arange(300))
    first = search(untrained("mlp"), rows, SHORT, LOOK)
    assert search(untrained("mlp"), rows, SHORT, LOOK) == first
    told = msgspec.json.decode(msgspec.json.encode(first.trials), type=tuple[Trial, ...])
    assert search(untrained("mlp"), rows, SHORT, LOOK, done=told[:4]) == first
    assert search(untrained("mlp"), rows, SHORT, LOOK, done=told) == first


def test_a_search_ends_with_its_time_or_when_told_to():
    rows = digits()[0].take(np.arange(300))
    spent = search(untrained("mlp"), rows, SHORT, Search(trials=1000, budget_s=0.3))
    assert len(spent.trials) < 1000
    none = search(untrained("mlp"), rows, SHORT, LOOK, Hooks(should_stop=lambda: True))
    assert (none.trials, none.training) == ((), SHORT)


def test_a_search_needs_rows_to_judge_by_and_a_range():
    with pytest.raises(InvalidConfig, match="held_out"):
        search(untrained("mlp"), digits()[0], msgspec.structs.replace(SHORT, held_out=0.0), LOOK)
    with pytest.raises(ValueError, match=r"weight_decay goes from 1 to 0\.1"):
        Search(weight_decay=(1.0, 0.1))
