"""Intervals: against published figures, against what they promise, and at their ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.quality import intervals
from shared.quality.estimates import Estimate

FLAGS = st.lists(st.booleans(), min_size=1, max_size=200).map(np.array)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200).map(np.array)


def flags(right, rows):
    return np.arange(rows) < right


class TestShare:
    def test_published_example(self):
        """81 of 263 and 15 of 148: R. G. Newcombe, Statistics in Medicine 17, 1998, table I, method 3."""
        found = intervals.share(flags(81, 263))
        assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
        found = intervals.share(flags(15, 148))
        assert (round(found.low, 4), round(found.high, 4)) == (0.0624, 0.1605)

    def test_the_ends_keep_a_width(self):
        every = intervals.share(flags(29, 29))
        assert every.high == 1.0
        assert every.low == pytest.approx(1 - 0.1170, abs=1e-4)
        assert intervals.share(flags(0, 29)).low == 0.0

    @given(FLAGS)
    def test_it_holds_the_value(self, right):
        found = intervals.share(right)
        assert 0 <= found.low <= found.value == np.mean(right) <= found.high <= 1

    def test_it_covers_the_truth_about_as_often_as_it_says(self):
        random = np.random.default_rng(0)
        found = [intervals.share(random.random(100) < 0.97) for _ in range(2000)]
        assert 0.93 < np.mean([each.low <= 0.97 <= each.high for each in found]) < 0.98


class TestShareLost:
    def lost(self, both, only_reference, only_candidate, neither):
        counts = (both, only_reference, only_candidate, neither)
        reference, candidate = (np.repeat(values, counts) for values in ([1, 1, 0, 0], [1, 0, 1, 0]))
        return intervals.share_lost(reference.astype(bool), candidate.astype(bool))

    def test_by_the_formula(self):
        """Cells 1, 1, 7, 12 (N 21), worked out by hand: (2 - 8) / 23 ± 1.96 sqrt((10/23 - (6/23)^2) / 23)."""
        found = self.lost(1, 1, 7, 12)
        assert found.value == pytest.approx(-6 / 21)
        assert (found.low, found.high) == (pytest.approx(-0.5085, abs=1e-3), pytest.approx(-0.0132, abs=1e-3))

    def test_no_difference_is_no_proof_of_none(self):
        found = self.lost(580, 0, 0, 20)
        assert found.value == 0.0
        assert 0.003 < found.high == -found.low < 0.006  # about the "rule of three": 3 / 600

    def test_only_discordant_rows_tell(self):
        few, many = self.lost(500, 10, 10, 80), self.lost(400, 100, 100, 0)
        assert few.high - few.low < many.high - many.low

    @given(PAIRS)
    def test_it_is_antisymmetric_and_holds_the_value(self, pairs):
        there, back = intervals.share_lost(*pairs.T), intervals.share_lost(*pairs.T[::-1])
        assert -1 <= there.low <= there.value <= there.high <= 1
        assert (there.low, there.value) == (pytest.approx(-back.high), -back.value)

    def test_it_covers_the_truth_about_as_often_as_it_says(self):
        random, held = np.random.default_rng(0), []
        for _ in range(2000):
            drawn = random.random(200)
            reference, candidate = drawn > 0.03, (drawn > 0.05) | (drawn < 0.01)
            found = intervals.share_lost(reference, candidate)
            held.append(found.low <= 0.97 - 0.96 <= found.high)
        assert 0.92 < np.mean(held) < 0.99


class TestBootstrap:
    def test_it_covers_the_truth_about_as_often_as_it_says(self):
        random = np.random.default_rng(0)
        found = [intervals.means(random.exponential(size=(100, 1)), seed)[0] for seed in range(300)]
        assert 0.88 < np.mean([each.low <= 1 <= each.high for each in found]) < 0.98

    def test_the_seed_decides(self):
        rows = np.random.default_rng(0).standard_normal((50, 2))
        assert intervals.means(rows, 1) == intervals.means(rows, 1)
        assert intervals.means(rows, 1) != intervals.means(rows, 2)

    def test_columns_are_drawn_together(self):
        """So what both have in common cancels out of their difference."""
        common = np.random.default_rng(0).standard_normal(200) * 100
        rows = np.stack([common, common + 1], axis=1)
        (mean,) = intervals.means(rows[:, :1], 0)
        (difference,) = intervals.bootstrap(rows, lambda means: means[:, 1:] - means[:, :1], 0)
        assert mean.high - mean.low > 10
        assert (difference.low, difference.high) == (pytest.approx(1), pytest.approx(1))

    def test_chunks_change_nothing_but_memory(self, monkeypatch):
        rows = np.random.default_rng(0).standard_normal((50, 1))
        whole = intervals.means(rows, 1)
        monkeypatch.setattr(intervals, "_CHUNK_ELEMENTS", 1000)
        assert intervals.means(rows, 1) == whole

    def test_one_row(self):
        (found,) = intervals.means(np.ones((1, 1)), 0)
        assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_an_interval_has_its_ends_in_order():
    with pytest.raises(ValueError, match="from 2 to 1"):
        Estimate(value=1, low=2, high=1, method="exact")
