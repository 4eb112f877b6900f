"""The headers of a request: the contract with producers that we do not know."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidId, InvalidInput
from shared.requests import RequestHeaders, derived_id, from_kafka, request_id_of

NUMBERS = {
    "inference-header-content-length": "header_length",
    "deadline": "deadline_ms",
    "model-version": "model_version",
    "registry-offset": "registry_offset",
}
TEXTS = {
    "content-type": "content_type",
    "tenant": "tenant",
    "reply-topic": "reply_topic",
    "reply-channel": "reply_channel",
    "traceparent": "traceparent",
}
ascii_text = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=50)
number = st.none() | st.integers(0, 10**18 - 1)


def test_no_headers_at_all_is_a_request():
    assert from_kafka([]) == RequestHeaders()


@given(
    headers=st.builds(
        RequestHeaders,
        request_id=ascii_text,
        content_type=ascii_text,
        header_length=number,
        deadline_ms=number,
        model_version=number,
        tenant=st.none() | ascii_text,
        reply_topic=st.none() | ascii_text,
        reply_channel=st.none() | ascii_text,
        registry_offset=number,
        traceparent=st.none() | ascii_text,
        echo=st.lists(st.tuples(ascii_text.map(lambda name: f"x-{name}"), st.binary(max_size=20)), max_size=3).map(
            tuple
        ),
    )
)
def test_what_the_gateway_writes_the_worker_reads(headers):
    assert from_kafka(headers.to_kafka("gateway-1")) == headers


def test_the_gateway_names_itself_and_what_it_writes():
    headers = dict(RequestHeaders(request_id="a").to_kafka("gateway-1"))
    assert headers["ce_type"] == b"InferenceRequested"
    assert headers["ce_source"] == b"gateway-1"
    assert headers["content-type"] == b"application/msgpack"


@given(headers=st.lists(st.tuples(st.sampled_from([*NUMBERS, *TEXTS, "ce_id", "x-a", "other"]), st.binary())))
def test_any_bytes_raise_only_what_is_documented(headers):
    with suppress(InvalidId, InvalidInput):
        assert isinstance(from_kafka(headers), RequestHeaders)


@pytest.mark.parametrize(("header", "field"), NUMBERS.items())
@pytest.mark.parametrize(
    "value", [b"", b"-1", b"+1", b"1.0", b"1e3", b" 1", b"1 ", b"0x1", b"1_000", "٣".encode(), "²".encode(), b"9" * 19]
)
def test_a_number_that_is_none_is_refused_by_name(header, field, value):
    with pytest.raises(InvalidInput, match=header):
        from_kafka([(header, value)])
    assert getattr(from_kafka([(header, b"042")]), field) == 42


@pytest.mark.parametrize("header", TEXTS)
@pytest.mark.parametrize("value", ["ä".encode(), b"\xff", b"a" * 1001])
def test_a_text_that_is_not_short_ascii_is_refused_by_name(header, value):
    with pytest.raises(InvalidInput, match=header):
        from_kafka([(header, value)])


@pytest.mark.parametrize("value", [b"", b"a" * 201, "ä".encode(), b"a b", b"a\n", b"a\x00", b"\x7f"])
def test_an_id_that_is_no_id_is_refused(value):
    with pytest.raises(InvalidId):
        request_id_of([("ce_id", value)])
    with pytest.raises(InvalidId):
        from_kafka([("ce_id", value), ("deadline", b"also bad")])


def test_a_null_header_is_an_empty_one_and_a_null_id_is_none():
    headers = from_kafka([("x-null", None), ("tenant", None), ("ce_id", None)])
    assert headers == RequestHeaders(tenant="", echo=(("x-null", b""),))


def test_names_are_case_insensitive_and_echoed_as_they_came():
    headers = from_kafka([("CE_ID", b"a"), ("Deadline", b"5"), ("X-Trace", b"\xff")])
    assert (headers.request_id, headers.deadline_ms, headers.echo) == ("a", 5, (("X-Trace", b"\xff"),))


def test_a_record_without_an_id_has_the_id_of_its_place():
    assert derived_id("aiaas.requests.m", 3, 42) == "aiaas.requests.m-3-42"
