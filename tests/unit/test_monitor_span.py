"""Which windows a query covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.monitor import span
from shared.errors import InvalidInput

NOW_S = 1_764_358_005.5


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (None, None, (1_764_354_400, 1_764_358_010, 10)),
        ("-15m", None, (1_764_357_100, 1_764_358_010, 10)),
        ("1764350000", "1764350060", (1_764_350_000, 1_764_350_060, 10)),
        ("2025-11-28T19:00:00Z", "2025-11-28T19:01:00", (1_764_356_400, 1_764_356_460, 10)),
    ],
)
def test_times_in_every_form(begin, end, expected):
    found = span.read(begin, end, None, NOW_S)
    assert (found.start_s, found.end_s, found.step_s) == expected


@pytest.mark.parametrize(
    ("begin", "end", "step_s"),
    [
        ("yesterday", None, None),
        ("-1h", "-2h", None),
        ("-1h", None, 15),
        ("-1d", None, 10),
        ("9" * 12, None, None),
        ("-999999999d", None, None),
    ],
)
def test_what_is_no_span_is_refused(begin, end, step_s):
    with pytest.raises(InvalidInput):
        span.read(begin, end, step_s, NOW_S)


@given(st.integers(0, 10**9), st.integers(1, 10**8))
def test_a_span_covers_what_was_asked_with_few_windows(begin, length):
    found = span.read(str(begin), str(begin + length), None, NOW_S)
    assert found.start_s <= begin
    assert begin + length <= found.end_s
    assert found.end_s - found.start_s < length + 2 * found.step_s
    assert len(found.windows) <= max(362, length // 86_400 + 2)
