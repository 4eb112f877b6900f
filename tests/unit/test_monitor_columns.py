"""Columns of what receipts claim."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.monitor.columns import numbers, texts
from services.monitor.sketch import MOST_NS

ANY_NUMBER = st.none() | st.integers(-(2**64), 2**64)


@given(st.lists(ANY_NUMBER))
def test_numbers_are_bounded_one_by_one(told):
    expected = [None if number is None else min(max(number, 0), MOST_NS) for number in told]
    assert numbers(told).to_pylist() == expected


@given(st.lists(st.none() | st.text(max_size=12)), st.integers(1, 10))
def test_texts_are_cut_by_characters(told, longest):
    assert texts(told, longest).to_pylist() == [text if text is None else text[:longest] for text in told]


@pytest.mark.parametrize("told", [[], [None], [None, None]])
def test_a_column_of_nothing_is_one(told):
    assert numbers(told).to_pylist() == told
    assert texts(told).to_pylist() == told
