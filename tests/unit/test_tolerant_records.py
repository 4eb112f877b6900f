"""Batches that a broker takes and aiokafka alone does not read, or reads wrongly."""

from __future__ import annotations

import struct

import pytest
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from shared.tolerant_records import TolerantRecords, WholePartitionRecords
from support.raw_batches import CODECS, Raw, batch

GOOD = Raw(key=b"k", value=b"good", headers=[("é".encode(), b"x"), (b"", None)])
READ = (b"k", b"good", (("é", b"x"), ("", None)))
MALFORMED = {
    "a header name that is not UTF-8": (
        batch(GOOD, Raw(headers=[(b"\xff\xfe", b"x")]), GOOD),
        [READ, (None, b"value", (("��", b"x"),)), READ],
    ),
    "a surrogate in a header name, compressed": (
        batch(GOOD, Raw(headers=[(b"x-\xed\xa0\x80", b"x")]), codec="zstd"),
        [READ, (None, b"value", (("x-���", b"x"),))],
    ),
    "attributes above 127": (batch(GOOD, Raw(attributes=0x80), GOOD), [READ, (None, b"value", ()), READ]),
    "an offset twice": (batch(GOOD, Raw(offset_delta=0), GOOD), [READ, (None, b"value", ()), READ]),
    "an offset beyond the batch": (batch(Raw(offset_delta=1000), GOOD), [(None, b"value", ()), READ]),
    "an offset before the batch": (batch(GOOD, Raw(offset_delta=-5)), [READ, (None, b"value", ())]),
    "offsets in reverse": (batch(GOOD, Raw(offset_delta=2), Raw(b"last", offset_delta=1)), None),
}


def read(content, partition_records=WholePartitionRecords, memory_records=TolerantRecords, start=0, *, check_crcs=True):
    about = (TopicPartition("t", 0), memory_records(content), [], start, None, None, check_crcs, 1)
    return partition_records(*about)


def plain(records):
    return [(record.key, record.value, record.headers) for record in records]


@pytest.mark.parametrize("content", [content for content, _ in MALFORMED.values()], ids=MALFORMED)
def test_aiokafka_alone_does_not_read_it(content):
    """When this fails for a kind, aiokafka has learnt it; when for all, `shared.tolerant_records` can go."""
    try:
        offsets = [record.offset for record in read(content, PartitionRecords, MemoryRecords)]
    except (CorruptRecordException, UnicodeDecodeError):
        return
    assert offsets != list(range(len(offsets))) or len(offsets) < content_count(content)


def content_count(content):
    return struct.unpack_from(">i", content, 57)[0]


@pytest.mark.parametrize(("content", "expected"), MALFORMED.values(), ids=MALFORMED)
def test_every_record_of_a_malformed_batch_is_read_at_its_own_offset(content, expected):
    records = list(read(content))
    assert [record.offset for record in records] == list(range(content_count(content)))
    assert expected is None or plain(records) == expected


@pytest.mark.parametrize("codec", CODECS)
def test_a_well_formed_batch_is_read_as_aiokafka_reads_it(codec):
    content = batch(GOOD, Raw(None), GOOD, codec=codec, base_offset=7) + batch(GOOD, codec=codec, base_offset=10)
    assert list(read(content)) == list(read(content, PartitionRecords, MemoryRecords))
    assert [record.offset for record in read(content, start=8)] == [8, 9, 10]


def test_compaction_may_leave_holes():
    content = bytearray(batch(GOOD, Raw(offset_delta=5), Raw(offset_delta=9)))
    struct.pack_into(">i", content, 23, 9)  # the last offset of the batch stays when records go
    assert [record.offset for record in read(bytes(content), check_crcs=False)] == [0, 5, 9]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_null_records_stand_where_nothing_can_be_read(codec):
    damaged = Raw(headers=[(b"a", b"b")] * 3)
    lie = batch(GOOD, damaged, damaged, codec=codec)
    content = batch(GOOD, damaged, damaged).replace(b"\x02a\x02b", b"\x7fa\x02b", 1)  # a header name beyond the record
    records = list(read(content, check_crcs=False))
    assert plain(records) == [READ, (None, None, ()), (None, None, ())]
    junk = lie[: len(lie) // 2] + bytes(len(lie) - len(lie) // 2)
    assert [record.offset for record in read(junk, check_crcs=False)] == [0, 1, 2]


def test_records_before_damage_are_delivered_and_then_it_raises():
    first, damaged = batch(GOOD, GOOD), bytearray(batch(GOOD, base_offset=2))
    damaged[-1] ^= 0xFF  # its checksum says so
    fetched = read(first + damaged)
    assert [record.offset for record in fetched] == [0, 1]
    assert fetched.next_fetch_offset == 2
    with pytest.raises(CorruptRecordException):
        next(read(bytes(damaged), start=2))


@given(
    st.sampled_from(sorted(CODECS)),
    st.lists(st.tuples(st.integers(61, 200), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_whatever_a_batch_holds_its_offsets_are_its_own(codec, changes):
    content = bytearray(batch(GOOD, Raw(None), Raw(attributes=1), GOOD, codec=codec, base_offset=100))
    for position, byte in changes:
        content[min(position, len(content) - 1)] = byte
    assert [record.offset for record in read(bytes(content), check_crcs=False, start=100)] == [100, 101, 102, 103]
