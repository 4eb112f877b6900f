"""What goes into a segment: results fetched in portions, headers packed, days named."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit.results import results_of
from services.audit.segment import Segment, day_of
from shared.codec import pack
from shared.errors import TooLarge
from shared.results import Result
from shared.tensors import Tensor, output_digest
from support.facts import receipt
from support.fake_replies import FakeReplies


class Counting(FakeReplies):
    """Remembers how many answers were asked for at a time."""

    def __init__(self):
        super().__init__()
        self.asked = []

    async def get(self, keys):
        self.asked.append(len(keys))
        return await super().get(keys)


def fetched(sizes, limit_bytes=2**62):
    """Results with so many bytes each, as they are read back; and in which portions."""

    async def read():
        replies, receipts = Counting(), []
        for number, size in enumerate(sizes):
            outputs = (Tensor("y", "UINT8", (size,), bytes(size)),)
            receipts.append(receipt(number, request_id=f"r{number}", output_sha256=output_digest(outputs)))
            await replies.put([Result(id=f"r{number}", status="succeeded", model_name="m", outputs=outputs)])
        return await results_of(replies, receipts, limit_bytes), replies.asked

    return asyncio.run(read())


def test_small_results_are_fetched_many_at_a_time_and_large_ones_few():
    results, asked = fetched([10] * 300)
    assert [result.id for result in results] == [f"r{number}" for number in range(300)]
    assert asked == [32, 128, 128, 12]
    assert fetched([100_000] * 80)[1] == [32, 32, 16]
    assert fetched([10] * 32 + [100_000] * 128 + [10] * 64)[1] == [32, 128, 32, 32]
    with pytest.raises(TooLarge):
        fetched([100_000] * 80, limit_bytes=7_000_000)


@given(st.lists(st.tuples(st.text(), st.none() | st.binary())))
def test_headers_are_packed_as_the_codec_packs_them(headers):
    segment = Segment(0, 0)
    segment.add(SimpleNamespace(offset=0, timestamp=0, key=None, value=None, headers=tuple(headers)), None)
    assert segment.records[0]["headers"] == pack([list(header) for header in headers])


@given(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**42))
def test_the_day_is_that_of_the_time(timestamp_ms):
    try:
        day = f"{datetime.fromtimestamp(max(timestamp_ms, 0) / 1000, UTC):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        day = "1970-01-01"
    assert day_of(timestamp_ms) == day
