"""Server-sent events as a command reads them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.cli.events import parse

STREAM = (
    b": hello\n\nretry: 1000\nevent: state\nid: 1\ndata: {}\n\n"
    b"data: two\r\ndata:lines\r\n\r\nevent: empty\n\nevent: outcome\ndata: \xe2\x80\xa8\xc2\x85\n\nevent: cut\ndata: x"
)
EVENTS = [("state", "{}"), ("message", "two\nlines"), ("outcome", "\u2028\x85")]


@given(st.lists(st.integers(0, len(STREAM))))
def test_wherever_the_stream_is_cut_into_pieces(cuts):
    ends = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(ends)]
    assert list(parse(pieces)) == EVENTS


def test_an_event_is_told_when_it_is_complete():
    arriving = iter([b"data: 1\n\n", b"data: 2\n"])
    assert next(parse(arriving)) == ("message", "1")
    assert next(arriving) == b"data: 2\n"
