"""For how long answers are kept while Redis fills: the longest with room, never less than the least, and never full."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import keeping as module
from shared.keeping import Keeping, kept_s

HOUR_S, MINUTE_S = 3600, 60
ANSWER_BYTES = 1650
GIB = 1024**3


@pytest.mark.parametrize(
    ("fill", "seconds"), [(0, HOUR_S), (0.2, HOUR_S), (0.3, 502), (0.4, MINUTE_S), (1, MINUTE_S), (1.2, MINUTE_S)]
)
def test_the_fuller_the_shorter(fill, seconds):
    assert kept_s(fill, 1, HOUR_S, MINUTE_S) == pytest.approx(seconds, abs=1)


@given(st.floats(0, 2), st.floats(0, 2), st.integers(1, 10_000), st.integers(1, 10_000))
def test_it_is_monotonic_and_within_its_bounds(one, other, longest_s, least_s):
    least_s = min(longest_s, least_s)
    fuller, emptier = kept_s(max(one, other), 1, longest_s, least_s), kept_s(min(one, other), 1, longest_s, least_s)
    assert least_s <= fuller <= emptier <= longest_s


@pytest.mark.parametrize(
    "phases",
    [
        [(4_000, 1800)],
        [(150, 7200), (4_000, 900)],
        [(1_000, 3600), (0, 600), (4_000, 600)],
        [(50, 3600), (500, 3600), (2_000, 3600)],
    ],
)
def test_a_gibibyte_is_never_full_at_4000_a_second_whatever_came_before(phases):
    expires: Counter[int] = Counter()
    used = 0
    for now_s, per_s in enumerate(per_s for per_s, during_s in phases for _ in range(during_s)):
        used -= expires.pop(now_s, 0)
        expires[now_s + kept_s(used, GIB, HOUR_S, MINUTE_S)] += per_s * ANSWER_BYTES
        used += per_s * ANSWER_BYTES
        assert used < GIB


def test_it_follows_the_memory_both_ways_and_without_a_bound_there_is_room():
    keeping = Keeping(HOUR_S, MINUTE_S)
    for used, most, ttl_s in ((0, GIB, HOUR_S), (GIB, GIB, MINUTE_S), (GIB // 8, GIB, HOUR_S), (2**40, 0, HOUR_S)):
        keeping.adapt(used, most)
        assert (keeping.ttl_s, keeping.is_shortened) == (ttl_s, ttl_s < HOUR_S)


def test_a_look_is_due_once_a_second(monkeypatch):
    now_s, keeping = [100.0], Keeping(HOUR_S, MINUTE_S)
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    assert [keeping.is_due() for _ in range(3)] == [True, False, False]
    now_s[0] += 1.01
    assert [keeping.is_due() for _ in range(3)] == [True, False, False]


def test_the_least_is_no_more_than_the_longest():
    assert kept_s(1, 1, 30, MINUTE_S) == 30
