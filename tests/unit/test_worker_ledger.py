"""The ledger: whatever order answers come in, outcomes leave as a contiguous run in request order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.ledger import Ledger, Outcome


@st.composite
def completions(draw):
    """Offsets with holes, the order in which they complete, and how many complete between two flushes."""
    gaps = draw(st.lists(st.integers(1, 4), min_size=1, max_size=30))
    offsets = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    return offsets, draw(st.permutations(offsets)), draw(st.integers(1, 5))


@given(completions())
def test_outcomes_leave_in_request_order_without_a_gap(example):
    offsets, order, between = example
    ledger = Ledger("t", 0, offsets[0])
    for offset in offsets:
        ledger.open(offset)
    appended = []
    for count, offset in enumerate(order, start=1):
        ledger.complete(offset, Outcome(f"r{offset}", b"receipt"))
        if count % between == 0:
            run = [at for at, _ in ledger.ready()]
            appended += run
            assert appended == offsets[: len(appended)]
            if run:
                ledger.advance(run[-1])
                assert ledger.appended == run[-1] + 1
    appended += [at for at, _ in ledger.ready()]
    assert appended == offsets


def test_what_is_not_complete_holds_back_what_follows():
    ledger = Ledger("t", 0, 5)
    for offset in (5, 6, 7):
        ledger.open(offset)
    ledger.complete(6, Outcome("r6", b"receipt"))
    ledger.complete(7, Outcome("r7", b"receipt"))
    assert ledger.ready() == []
    ledger.complete(5, Outcome("r5", b"receipt"))
    assert [offset for offset, _ in ledger.ready()] == [5, 6, 7]


def test_ready_rows_stay_until_they_are_appended():
    ledger = Ledger("t", 0, 0)
    ledger.open(0)
    ledger.complete(0, Outcome("r0", b"receipt"))
    assert ledger.ready() == ledger.ready() != []
    ledger.advance(0)
    assert ledger.ready() == []
    assert (ledger.appended, ledger.committed, ledger.open_rows) == (1, 0, 0)


def test_a_closed_ledger_takes_no_late_answers():
    ledger = Ledger("t", 0, 0)
    ledger.open(0)
    ledger.close()
    ledger.complete(0, Outcome("r0", b"receipt"))
    assert ledger.ready() == []


def test_offsets_only_grow():
    ledger = Ledger("t", 0, 3)
    ledger.open(4)
    with pytest.raises(ValueError, match="taken before"):
        ledger.open(4)
