"""Fetches as `shared.quick_fetches` writes and reads them are aiokafka's, byte for byte and value for value."""

from __future__ import annotations

from io import BytesIO

import pytest
from aiokafka.protocol.fetch import FetchRequest_v11, FetchResponse_v11
from aiokafka.protocol.struct import Struct
from hypothesis import given
from hypothesis import strategies as st

from shared import quick_fetches

BYTE, SHORT, INT, LONG = (st.integers(-(2**bits), 2**bits - 1) for bits in (7, 15, 31, 63))
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def few(each):
    return st.lists(each, max_size=4)


ASKED_OF = st.tuples(INT, INT, LONG, LONG, INT)
REQUESTS = st.builds(
    FetchRequest_v11,
    replica_id=INT,
    max_wait_time=st.integers(-(2**31), 999),
    min_bytes=INT,
    max_bytes=INT,
    isolation_level=BYTE,
    session_id=INT,
    session_epoch=INT,
    topics=few(st.tuples(NAME, few(ASKED_OF))),
    forgotten_topics_data=few(st.tuples(NAME, few(INT))),
    rack_id=NAME,
)
GOT_OF = st.tuples(
    INT, SHORT, LONG, LONG, LONG, st.none() | few(st.tuples(LONG, LONG)), INT, st.none() | st.binary(max_size=100)
)
RESPONSES = st.builds(
    FetchResponse_v11,
    throttle_time_ms=INT,
    error_code=SHORT,
    session_id=INT,
    topics=few(st.tuples(NAME, few(GOT_OF))),
)


@pytest.fixture(scope="module", autouse=True)
def installed():
    quick_fetches.install()


@given(REQUESTS)
def test_a_request_has_the_same_bytes(request):
    assert request.encode() == Struct.encode(request)


@pytest.mark.parametrize(("now_ms", "until_ms"), [(4000, 2000), (4001, 1999), (5999, 1)])
def test_long_waits_end_together(monkeypatch, now_ms, until_ms):
    monkeypatch.setattr(quick_fetches.time, "monotonic_ns", lambda: now_ms * 1_000_000)
    about = {"min_bytes": 1, "max_bytes": 1, "isolation_level": 1, "session_id": 0, "session_epoch": -1}
    sent, expected = (
        FetchRequest_v11(replica_id=-1, max_wait_time=ms, **about, topics=[], forgotten_topics_data=[], rack_id="")
        for ms in (2000, until_ms)
    )
    assert sent.encode() == Struct.encode(expected)


@given(RESPONSES, st.binary(max_size=10))
def test_a_response_has_the_same_values(response, header):
    content = BytesIO(header + response.encode())
    content.seek(len(header))
    assert FetchResponse_v11.decode(content) == response


@given(RESPONSES, st.data())
def test_a_response_that_ends_too_soon_is_refused_as_by_aiokafka(response, data):
    whole = response.encode()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(ValueError, match=r"."):
        FetchResponse_v11.decode(BytesIO(cut))
