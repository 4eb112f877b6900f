"""Sketches: the library's buckets, quantiles within their bound, and sums that are sums."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ddsketch import DDSketch
from ddsketch.mapping import LogarithmicMapping
from hypothesis import given
from hypothesis import strategies as st

from services.monitor.sketch import ACCURACY, MOST_NS, ZERO, buckets, quantiles_s, share_within

SHARES = (0.0, 0.5, 0.9, 0.99, 1.0)
durations = st.lists(st.integers(0, MOST_NS), min_size=1, max_size=200)


def of(values) -> Counter[int]:
    return Counter(buckets(np.array(values, dtype=np.int64)).tolist())


@given(st.integers(1, MOST_NS))
def test_buckets_are_the_librarys(value):
    mapping, [found] = LogarithmicMapping(ACCURACY), buckets(np.array([value])).tolist()
    # On the border between two, a logarithm may be rounded either way; both keep the bound.
    assert found == mapping.key(value) or abs(mapping.value(found) - value) <= (ACCURACY + 1e-9) * value


def test_no_time_and_more_than_can_be():
    assert buckets(np.array([0, -5])).tolist() == [ZERO, ZERO]
    assert buckets(np.array([2**62])).tolist() == buckets(np.array([MOST_NS])).tolist()
    assert quantiles_s({}, SHARES) == [None] * len(SHARES)
    assert quantiles_s({ZERO: 3}, (0.5,)) == [0.0]
    assert share_within({}, 10) is None


@given(durations)
def test_a_quantile_is_within_its_bound(values):
    ordered = sorted(values)
    for share, found in zip(SHARES, quantiles_s(of(values), SHARES), strict=True):
        rank = share * (len(values) - 1)
        low, high = ordered[int(np.floor(rank))], ordered[int(np.ceil(rank))]
        assert low * (1 - ACCURACY) / 1e9 - 1e-15 <= found <= high * (1 + ACCURACY) / 1e9 + 1e-15


@given(durations, durations)
def test_sketches_of_parts_add_up(left, right):
    assert of(left) + of(right) == of(left + right)
    library = DDSketch(ACCURACY)
    for value in left + right:
        library.add(float(value))
    [ours] = quantiles_s(of(left) + of(right), (0.5,))
    assert abs(ours * 1e9 - library.get_quantile_value(0.5)) <= 2.1 * ACCURACY * library.get_quantile_value(0.5)


@given(durations, st.integers(1, MOST_NS))
def test_the_share_within_a_limit_is_off_by_one_bucket(values, limit):
    found = share_within(of(values), limit)
    assert sum(value <= limit for value in values) / len(values) <= found
    assert found <= sum(value <= limit * (1 + 3 * ACCURACY) for value in values) / len(values)
