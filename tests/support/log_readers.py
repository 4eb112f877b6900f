"""Reading the log from outside, with `confluent-kafka`: any topic, and outcomes by their public rule."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from shared.outcomes import Watermarks, read_outcome

if TYPE_CHECKING:
    from shared.outcome_events import Receipt

At = tuple[str, int, int]
"""Topic, partition and offset of a record."""
_POLL_S = 0.1


class Log:
    """A reader of one topic, from its beginning; `poll` gives what is new."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        options = {"bootstrap.servers": bootstrap_servers, "group.id": f"test-{uuid.uuid4()}"}
        self._consumer = Consumer(options | {"enable.auto.commit": False})
        self._topic = topic
        self._partitions: list[int] = []

    def open(self) -> None:
        """Find the topic's partitions; a topic that appears later is found by the next `poll`."""
        found = self._consumer.list_topics(self._topic, timeout=10).topics[self._topic].partitions
        self._partitions = sorted(found)
        self._consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in found])

    def poll(self) -> list[Message]:
        """All that is new up to the present ends, and once more, since the embedded broker tells them too low."""
        ends, reached = self.ends(), False
        records: list[Message] = []
        while not reached:
            reached = all(self._position(number) >= end for number, end in ends.items())
            for message in self._consumer.consume(1000, _POLL_S):
                error = message.error()
                if error is None:
                    records.append(message)
                elif not error.retriable():
                    raise KafkaException(error)
        return records

    def ends(self) -> dict[int, int]:
        """The offset after the last record, by partition."""
        if not self._partitions:
            self.open()
        return {
            number: self._consumer.get_watermark_offsets(TopicPartition(self._topic, number), timeout=10)[1]
            for number in self._partitions
        }

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()

    def _position(self, number: int) -> int:
        [at] = self._consumer.position([TopicPartition(self._topic, number)])
        return max(0, int(at.offset))


class Outcomes:
    """The outcome log, read by the public rule: the first outcome of a request counts."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.accepted: dict[At, Receipt] = {}
        self.by_id: dict[tuple[str, str], list[Receipt]] = {}
        """By model and request id: one, unless the id was sent again."""
        self.written_ms: dict[At, int] = {}
        self.repeats = 0
        self.offsets: dict[int, int] = {}
        """The offset after the last record read, by partition."""
        self._marks = Watermarks()

    def poll(self) -> None:
        """Take in what is new."""
        for message in self._log.poll():
            self.offsets[message.partition()] = message.offset() + 1
            receipt = read_outcome(message.key(), message.value())
            if not self._marks.accept(receipt):
                self.repeats += 1
                continue
            at = receipt.request.topic, receipt.request.partition, receipt.request.offset
            self.accepted[at] = receipt
            self.written_ms[at] = message.timestamp()[1]
            self.by_id.setdefault((receipt.model_name, receipt.request_id), []).append(receipt)
