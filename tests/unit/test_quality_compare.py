"""Comparisons: what counts as right, what as lost, and by whom it is known (scikit-learn, where it has the metric)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from shared.quality import scores
from shared.quality.compare import labelled, unlabelled
from shared.quality.estimates import NotComparable

RANDOM = np.random.default_rng(0)


def classified(rows=200, classes=6, noise=1.0, seed=0, inner=()):
    """Scores of a reference and of a worse candidate, and labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, (rows, *inner))
    reference = np.eye(classes)[labels] * 2 + random.standard_normal((rows, *inner, classes))
    candidate = reference + noise * random.standard_normal(reference.shape)
    return reference.astype(np.float32), candidate.astype(np.float32), labels


def by_metric(found):
    return {each.metric: each for each in found}


class TestClassification:
    def test_as_scikit_learn_has_it(self):
        reference, candidate, labels = classified()
        found = by_metric(labelled("scores", reference, candidate, labels, k=2))
        for metric, score in (
            ("accuracy", lambda each: metrics.accuracy_score(labels, each.argmax(axis=1))),
            ("macro-f1", lambda each: metrics.f1_score(labels, each.argmax(axis=1), average="macro")),
            ("top-k", lambda each: metrics.top_k_accuracy_score(labels, each, k=2)),
        ):
            assert found[metric].reference.value == pytest.approx(score(reference))
            assert found[metric].candidate.value == pytest.approx(score(candidate))
            assert found[metric].loss.value == pytest.approx(score(reference) - score(candidate))
        assert [each.metric for each in found.values() if each.gates] == ["accuracy"]
        assert found["top-k"].k == 2

    def test_intervals_are_those_of_shares(self):
        found = by_metric(labelled("scores", *classified()))
        assert found["accuracy"].candidate.method == "wilson"
        assert found["accuracy"].loss.method == "bonett-price"
        assert found["macro-f1"].loss.method == "bootstrap"

    def test_pairing_makes_the_loss_sharper(self):
        accuracy = by_metric(labelled("scores", *classified(noise=0.05)))["accuracy"]
        widths = [each.high - each.low for each in (accuracy.reference, accuracy.candidate, accuracy.loss)]
        assert widths[2] < min(widths[:2])

    def test_tokens_of_a_row_stay_together(self):
        """Ten equal tokens are one decision: the interval is that of the rows, not ten times as many."""
        reference, candidate, labels = classified(rows=100)
        tokens = [np.repeat(array[:, None], 10, axis=1) for array in (reference, candidate, labels)]
        alone, together = (by_metric(labelled("scores", *each)) for each in ((reference, candidate, labels), tokens))
        for metric in ("accuracy", "macro-f1"):
            assert together[metric].loss.value == pytest.approx(alone[metric].loss.value)
            assert together[metric].rows == 100
        width = together["accuracy"].loss.high - together["accuracy"].loss.low
        expected = alone["accuracy"].loss.high - alone["accuracy"].loss.low
        assert width == pytest.approx(expected, rel=0.2)

    def test_labels_below_zero_do_not_count(self):
        reference, candidate, labels = classified(rows=60, inner=(4,))
        labels[:, 2:] = -100
        part = by_metric(labelled("s", reference[:, :2], candidate[:, :2], labels[:, :2]))
        padded = by_metric(labelled("s", reference, candidate, labels))
        for metric in ("accuracy", "macro-f1"):
            assert padded[metric].loss.value == pytest.approx(part[metric].loss.value)
        with pytest.raises(NotComparable, match="no label counts"):
            labelled("s", reference, candidate, np.full_like(labels, -1))

    def test_models_that_give_labels(self):
        truth = np.array(["a", "b", "a", "c"], dtype=object)
        found = by_metric(labelled("label", truth, np.array(["a", "b", "b", "c"], dtype=object), truth))
        assert (found["accuracy"].reference.value, found["accuracy"].candidate.value) == (1.0, 0.75)
        assert 0 < found["macro-f1"].loss.value < 1

    def test_too_many_classes_for_macro_f1(self):
        labels = np.arange(1500)
        found = by_metric(labelled("label", labels, labels[::-1], labels))
        assert set(found) == {"accuracy"}

    def test_a_class_that_only_the_answers_have_is_no_hit(self):
        reference, labels = np.eye(4, dtype=np.float32)[[0, 1, 3, 3]], np.array([0, 1, 0, 1])
        found = by_metric(labelled("s", reference, reference, labels))
        assert found["macro-f1"].candidate.value == pytest.approx(
            metrics.f1_score(labels, [0, 1, 3, 3], average="macro", labels=[0, 1])
        )

    @given(st.integers(1, 6), st.integers(0, 100))
    def test_top_k_of_scores_with_ties(self, k, seed):
        random = np.random.default_rng(seed)
        tied, labels = random.integers(0, 3, (30, 6)).astype(float), random.integers(0, 6, 30)
        first = np.argsort(-tied, axis=1, kind="stable")[:, :k]
        assert (scores.among_top(tied, labels, k) == (first == labels[:, None]).any(axis=1)).all()


class TestRegression:
    def test_as_scikit_learn_has_it(self):
        labels = RANDOM.standard_normal((300, 2))
        reference, candidate = (labels + scale * RANDOM.standard_normal((300, 2)) for scale in (0.1, 0.2))
        found = by_metric(labelled("y", reference, candidate, labels))
        for metric, score in (("mae", metrics.mean_absolute_error), ("rmse", metrics.root_mean_squared_error)):
            ours, theirs = score(labels.ravel(), reference.ravel()), score(labels.ravel(), candidate.ravel())
            assert found[metric].reference.value == pytest.approx(ours)
            assert found[metric].candidate.value == pytest.approx(theirs)
            assert found[metric].loss.value == pytest.approx((theirs - ours) / labels.std())
            assert found[metric].loss.low > 0
        assert found["rmse"].gates

    def test_the_last_axis_of_one_may_be_absent(self):
        answers, labels = RANDOM.standard_normal((20, 1)), RANDOM.standard_normal(20)
        assert by_metric(labelled("y", answers, answers, labels))["rmse"].loss.value == 0.0

    def test_units_do_not_matter(self):
        labels = RANDOM.standard_normal(50)
        reference, candidate = labels + 0.1, labels + 0.2
        plain, scaled = (
            by_metric(labelled("y", reference * unit, candidate * unit, labels * unit))["rmse"].loss.value
            for unit in (1.0, 1000.0)
        )
        assert plain == pytest.approx(scaled)

    def test_labels_that_do_not_fit(self):
        with pytest.raises(NotComparable, match=r"shape \[3\] do not fit answers of shape \[4, 5\]"):
            labelled("y", np.ones((4, 5)), np.ones((4, 5)), np.ones(3))


class TestUnlabelled:
    def test_scores_agree_or_not(self):
        reference, candidate, _ = classified()
        found = by_metric(unlabelled("scores", reference, candidate))
        expected = np.mean(reference.argmax(axis=1) == candidate.argmax(axis=1))
        assert found["agreement"].candidate.value == pytest.approx(expected)
        assert found["agreement"].loss.value == pytest.approx(1 - expected)
        assert [each.metric for each in found.values() if each.gates] == ["agreement"]
        assert found["max-abs-error"].candidate.value == pytest.approx(np.abs(reference - candidate).max())

    def test_embeddings_have_a_direction(self):
        vectors = RANDOM.standard_normal((50, 16))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        moved = vectors + 0.01
        found = by_metric(unlabelled("embedding", vectors, moved))
        assert set(found) == {"cosine", "max-abs-error"}
        cosine = np.mean((vectors * moved).sum(axis=1) / np.linalg.norm(moved, axis=1))
        assert found["cosine"].candidate.value == pytest.approx(cosine)
        assert found["cosine"].gates
        assert found["cosine"].loss.low < 1 - cosine < found["cosine"].loss.high
        assert "agreement" in by_metric(unlabelled("embedding", vectors, moved, is_scores=True))

    def test_certain_probabilities_are_scores(self):
        assert scores.looks_like_scores(np.eye(4)[[0, 1, 2]])
        assert not scores.looks_like_scores(np.ones((4, 1)))
        assert not scores.looks_like_scores(np.ones(4))

    @pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3), (7, 2, 3), (7, 1, 4, 5)])
    def test_any_shape(self, shape):
        answers = RANDOM.standard_normal(shape)
        for each in unlabelled("y", answers, answers.copy()):
            assert each.rows == 7
            assert each.loss is None or each.loss.value == pytest.approx(0, abs=1e-12)

    def test_whole_numbers_flags_and_strings_are_equal_or_not(self):
        for left, right in (([1, 2], [1, 3]), ([True, False], [True, True]), (["a", "b"], ["a", "c"])):
            kind = object if isinstance(left[0], str) else None
            (found,) = unlabelled("y", np.array(left, dtype=kind), np.array(right, dtype=kind))
            assert (found.metric, found.candidate.value, found.gates) == ("agreement", 0.5, True)

    def test_huge_numbers_and_zeros(self):
        rows = np.array([[1e300, 1e300], [0.0, 0.0], [0.0, 0.0], [1e-300, 0.0]])
        other = np.array([[1e300, 1e300], [0.0, 0.0], [1.0, 0.0], [1e-300, 1e-300]])
        assert scores.cosines(rows, other) == pytest.approx([1.0, 1.0, 0.0, 2**-0.5])

    def test_what_can_not_be_compared(self):
        ones = np.ones((2, 3))
        for other, why in (
            (np.ones((2, 4)), "shape"),
            (np.full((2, 3), np.nan), "6 numbers"),
            (np.where(np.eye(2, 3), np.inf, 1), "2 numbers"),
        ):
            with pytest.raises(NotComparable, match=why):
                unlabelled("y", ones, other)
        with pytest.raises(NotComparable, match="no rows"):
            unlabelled("y", np.ones((0, 3)), np.ones((0, 3)))

    def test_no_numbers_in_both_are_the_same(self):
        masked = np.array([[np.nan, 1.0, 2.0], [-np.inf, 2.0, 1.0]])
        found = by_metric(unlabelled("y", masked, masked))
        assert found["agreement"].candidate.value == 1.0


def test_the_seed_decides():
    reference, candidate, labels = classified()
    assert labelled("s", reference, candidate, labels, seed=1) == labelled("s", reference, candidate, labels, seed=1)
    assert labelled("s", reference, candidate, labels, seed=1) != labelled("s", reference, candidate, labels, seed=2)
