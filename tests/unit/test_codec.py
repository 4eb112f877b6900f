"""Control events on the wire: what goes in comes out, and nothing that comes in does harm."""

from __future__ import annotations

import math
import re
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import codec
from shared.codec import decode_event, encode_event, from_map, pack, to_map, unpack
from shared.errors import InvalidInput
from shared.events import ModelPromoted, TrafficSplit
from shared.metric_events import JobProgressed
from shared.outcome_events import Receipt
from shared.topics import EVENT_TYPES
from support import strategies
from support.facts import receipt

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

JOB = JobProgressed(
    instance="i",
    incarnation="a",
    service="s",
    seq=1,
    at_ns=1,
    model="m",
    version=1,
    attempt=1,
    step="vet",
    fraction=0.5,
)


def msgpack_of(value):
    return msgpack.packb(value, unicode_errors="surrogatepass")


@pytest.mark.parametrize("event_type", EVENT_TYPES.values(), ids=EVENT_TYPES)
@settings(max_examples=25)
@given(data=st.data())
def test_every_event_comes_back_as_it_was(event_type, data):
    event = data.draw(strategies.events(event_type))
    assert decode_event(event_type, encode_event(event)) == event


@pytest.mark.parametrize("event_type", EVENT_TYPES.values(), ids=EVENT_TYPES)
@settings(max_examples=25)
@given(data=st.data())
def test_any_field_may_hold_anything_and_only_invalid_input_is_raised(event_type, data):
    fields = to_map(data.draw(strategies.events(event_type)))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(ANYTHING)
    only_invalid_input(event_type, msgpack_of(fields))


@given(garbage=st.binary(max_size=200))
def test_any_bytes_raise_only_invalid_input(garbage):
    only_invalid_input(Receipt, garbage)


@given(value=ANYTHING)
def test_any_document_raises_only_invalid_input(value):
    only_invalid_input(Receipt, msgpack_of(value))


@given(cut=st.integers(0, 400), flip=st.integers(0, 400), bits=st.integers(1, 255))
def test_damaged_bytes_raise_only_invalid_input(cut, flip, bits):
    damaged = bytearray(encode_event(receipt()))
    damaged[flip % len(damaged)] ^= bits
    only_invalid_input(Receipt, bytes(damaged[: len(damaged) - cut % len(damaged)]))


def only_invalid_input(event_type, value):
    with suppress(InvalidInput):
        assert isinstance(decode_event(event_type, value), event_type)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x91" * 100_000,  # a list in a list in a list …
        b"\x81\xa1a" * 100_000,
        b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1, says the header
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x81\x90\x01",  # a list as a key
        b"\x81\x01\x02",
        b"\xc1",
        b"\xa1\xff",  # not UTF-8
        b"\x01\x02",
    ],
    ids=lambda bomb: bomb[:4].hex(),
)
def test_bombs_are_refused(bomb):
    with pytest.raises(InvalidInput):
        unpack(bomb)


def test_a_document_above_the_bound_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(codec, "MAX_BYTES", 10)
    assert unpack(pack("x" * 8)) == "x" * 8
    with pytest.raises(InvalidInput, match="above 10"):
        unpack(pack("x" * 10))


def test_a_tombstone_is_not_an_event():
    with pytest.raises(InvalidInput):
        decode_event(ModelPromoted, None)


def test_unknown_fields_are_ignored_so_that_a_newer_writer_stops_no_reader():
    event = receipt()
    assert from_map(Receipt, {**to_map(event), "added_later": {"deep": [1]}}) == event


@pytest.mark.parametrize("schema", [2, 0, -1, None, "1", 1.0, True])
def test_a_schema_that_is_not_ours_is_refused(schema):
    with pytest.raises(InvalidInput, match="schema"):
        from_map(ModelPromoted, {"schema": schema, "model": "m", "version": 1})
    with pytest.raises(InvalidInput, match="schema"):
        decode_event(ModelPromoted, pack({"schema": schema, "model": "m", "version": 1}))


@pytest.mark.parametrize("fields", [{}, {"model_": "schema"}, {"\0": "schema"}, {f"{n:x}": n for n in range(16)}])
def test_an_event_without_a_schema_is_refused(fields):
    for others in ({"model": "m", "version": 1} | fields, fields | {"model": "m", "version": 1}):
        with pytest.raises(InvalidInput, match="schema None"):
            decode_event(ModelPromoted, pack(others))


def test_the_order_of_fields_does_not_matter():
    fields = to_map(receipt())
    assert decode_event(Receipt, pack(dict(reversed(fields.items())))) == receipt()


def test_keys_of_maps_are_strings_numbers_too():
    event = TrafficSplit(model="m", weights={1: 90, 22: 10})
    assert unpack(encode_event(event)) == to_map(event)
    assert to_map(event) == {"schema": 1, "model": "m", "weights": {"1": 90, "22": 10}}
    for weights in ({"x": 1}, {"0": 1}, {"1": -1}, {str(2**31): 1}, {"1": "1"}, {"9" * 5000: 1}):
        with pytest.raises(InvalidInput, match=r"^TrafficSplit\.weights"):
            from_map(TrafficSplit, to_map(event) | {"weights": weights})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 2**64 - 1, True, "0.5"])
def test_a_number_that_json_does_not_have_is_refused(number):
    fields = to_map(JOB) | {"fraction": number}
    if number == 2**64 - 1:
        assert decode_event(JobProgressed, pack(fields)).fraction == float(number)
        return
    with pytest.raises(InvalidInput, match=r"^JobProgressed\.fraction: "):
        decode_event(JobProgressed, pack(fields))


@pytest.mark.parametrize("value", [1.0, "1", True, 2**31, None])
def test_what_is_no_integer_is_not_taken_for_one(value):
    with pytest.raises(InvalidInput, match=r"^ModelPromoted\.version: "):
        decode_event(ModelPromoted, pack({"schema": 1, "model": "m", "version": value}))


@pytest.mark.parametrize("bomb", [b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\xdd\xff\xff\xff\xff"])
def test_bombs_in_fields_are_refused_even_in_fields_that_nobody_reads(bomb):
    for name in (b"worker", b"request", b"added_later"):
        value = bytearray(encode_event(receipt()) + bytes([0xA0 + len(name)]) + name + bomb)
        value[2] += 1
        with pytest.raises(InvalidInput):
            decode_event(Receipt, bytes(value))


def test_an_older_schema_is_read_and_the_newest_is_written():
    class Promoted(ModelPromoted):
        schema: int = 3

    older = {"schema": 2, "model": "m", "version": 1}
    assert from_map(Promoted, older) == decode_event(Promoted, pack(older)) == Promoted(model="m", version=1, schema=2)
    assert unpack(encode_event(Promoted(model="m", version=1))) == older | {"schema": 3}
    for schema in (0, 4):
        with pytest.raises(InvalidInput, match=f"schema {schema} is not one of 1..3"):
            decode_event(Promoted, pack(older | {"schema": schema}))


def test_the_error_names_event_and_field():
    with pytest.raises(InvalidInput, match=r"^ModelPromoted\.version: "):
        from_map(ModelPromoted, {"schema": 1, "model": "m", "version": 0})


@pytest.mark.parametrize("model", ["", "-a", "a b", "a/b", "a\n", "ä", "a" * 101, "a_b", "../a"])
def test_a_model_name_that_is_no_topic_name_is_refused(model):
    with pytest.raises(InvalidInput, match="model"):
        from_map(ModelPromoted, {"schema": 1, "model": model, "version": 1})


def test_memory_views_decode_like_bytes():
    assert decode_event(Receipt, memoryview(encode_event(receipt(3)))) == receipt(3)


def test_times_are_rfc_3339_with_nanoseconds():
    assert codec.rfc3339(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"
    assert codec.rfc3339(0) == "1970-01-01T00:00:00.000000000Z"


def test_cloud_event_headers_are_those_of_the_kafka_binding():
    headers = codec.cloud_event_headers(event_type="A", source="b", event_id="c", traceparent="d")
    assert [name for name, _ in headers] == [
        "ce_specversion",
        "ce_type",
        "ce_source",
        "ce_id",
        "ce_time",
        "content-type",
        "traceparent",
    ]
    assert dict(headers)["ce_specversion"] == b"1.0"
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", dict(headers)["ce_time"])


def test_an_event_without_an_id_gets_a_fresh_one():
    ids = {dict(codec.cloud_event_headers(event_type="A", source="b"))["ce_id"] for _ in range(3)}
    assert len(ids) == 3
