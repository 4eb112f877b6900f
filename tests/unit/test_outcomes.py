"""Exactly one outcome per request, whatever dies: the reader's rule, and the writer's rule that it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.codec import encode_event
from shared.errors import InvalidInput
from shared.outcomes import Watermarks, read_outcome
from shared.topics import outcome_key
from support.facts import receipt


@dataclass
class Writer:
    """A worker that owns (or believes it owns) a request partition; `at` is the next request it answers."""

    at: int
    dead: bool = False


@dataclass
class Partition:
    """A request partition with its committed position, the outcomes appended for it, and everyone who ever wrote."""

    requests: list[int]
    committed: int = 0
    outcomes: list[int] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)

    def take_over(self):
        """A new owner, from the committed position; the one before may live on as a zombie."""
        self.writers.append(Writer(self.committed))

    def append(self, index, count):
        """Part of a run of outcomes reaches the log: zombies append as well as owners."""
        if not self.writers or (writer := self.writers[index % len(self.writers)]).dead:
            return
        run = self.requests[writer.at : writer.at + count]
        self.outcomes += run
        writer.at += len(run)

    def commit(self, _index, _count):
        """The owner commits what was acknowledged; Kafka refuses the commit of an older generation."""
        if self.writers and not self.writers[-1].dead:
            self.committed = max(self.committed, self.writers[-1].at)

    def die(self, index, _count):
        if self.writers:
            self.writers[index % len(self.writers)].dead = True

    def finish(self):
        self.take_over()
        self.append(len(self.writers) - 1, len(self.requests))

    def accepted(self):
        reader = Watermarks()
        return [offset for offset in self.outcomes if reader.accept(receipt(offset))]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["take_over", "append", "append", "append", "commit", "die"]),
        st.integers(0, 5),
        st.integers(1, 6),
    ),
    max_size=40,
)
# Offsets have holes: transaction markers and aborted records take some.
OFFSETS = st.lists(st.integers(0, 60), unique=True, min_size=1, max_size=20).map(sorted)


@given(offsets=OFFSETS, actions=ACTIONS)
def test_every_request_has_exactly_one_outcome_in_order_whoever_dies_and_whoever_does_not(offsets, actions):
    partition = Partition(offsets)
    for name, index, count in actions:
        if name == "take_over":
            partition.take_over()
        else:
            getattr(partition, name)(index, count)
        written = partition.accepted()
        assert written == offsets[: len(written)]
    partition.finish()
    assert partition.accepted() == offsets


def test_a_writer_that_leaves_a_gap_would_lose_an_outcome():
    """Why the writer's rule matters; also shows that the test above can fail."""
    partition = Partition([0, 1, 2, 3])
    partition.take_over()
    partition.append(0, 1)
    partition.writers[0].at += 1  # it goes on after an append that failed
    partition.append(0, 2)
    partition.finish()
    assert partition.outcomes == [0, 2, 3, 0, 1, 2, 3]
    assert partition.accepted() == [0, 2, 3]


def test_the_first_outcome_counts_and_each_request_partition_has_its_own_watermark():
    reader = Watermarks()
    assert reader.accept(receipt(5))
    assert not reader.accept(receipt(5, status="failed"))
    assert not reader.accept(receipt(4))
    assert reader.accept(receipt(0, partition=1))
    assert reader.accept(receipt(0, topic="t.requests.other"))
    assert reader.highest == {("t.requests.m", 0): 5, ("t.requests.m", 1): 0, ("t.requests.other", 0): 0}


@given(offsets=st.lists(st.integers(0, 20), max_size=30), cut=st.integers(0, 30))
def test_a_reader_that_starts_from_a_snapshot_accepts_what_one_that_never_stopped_does(offsets, cut):
    through, first = Watermarks(), Watermarks()
    expected = [offset for offset in offsets if through.accept(receipt(offset))]
    before = [offset for offset in offsets[:cut] if first.accept(receipt(offset))]
    second = Watermarks(dict(first.highest))
    assert before + [offset for offset in offsets[cut:] if second.accept(receipt(offset))] == expected


def test_a_record_of_the_outcome_log_is_read():
    outcome = receipt(3, partition=2)
    key, value = outcome_key("t.requests.m", 2), encode_event(outcome)
    assert read_outcome(key, value) == outcome
    assert read_outcome(key, value, {("t.requests.m", 2): 4}) == outcome


@pytest.mark.parametrize("key", [None, b"", b"t.requests.m/1", b"t.requests.other/0"])
def test_an_outcome_under_another_key_is_refused(key):
    with pytest.raises(InvalidInput, match="filed under"):
        read_outcome(key, encode_event(receipt(0)))


@pytest.mark.parametrize("ends", [{("t.requests.m", 0): 3}, {("t.requests.m", 1): 100}, {}])
def test_an_outcome_of_a_request_that_is_not_there_is_refused(ends):
    with pytest.raises(InvalidInput, match="where no request is"):
        read_outcome(b"t.requests.m/0", encode_event(receipt(3)), ends)


@pytest.mark.parametrize("value", [None, b"", b"garbage"])
def test_garbage_on_the_outcome_log_is_refused(value):
    with pytest.raises(InvalidInput):
        read_outcome(b"t.requests.m/0", value)


@pytest.mark.parametrize(("partition", "offset"), [(-1, 0), (0, -1)])
def test_a_receipt_of_a_place_that_cannot_be_is_refused(partition, offset):
    value = encode_event(receipt(offset, partition=partition))
    with pytest.raises(InvalidInput):
        read_outcome(outcome_key("t.requests.m", partition), value, {("t.requests.m", 0): 3})
