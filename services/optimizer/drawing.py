"""Drawing data sets from the log: a model's requests between two offsets or times, with what is known of the answers.

Nothing is committed and no group is joined: whoever draws the same range again gets the same records, as long as the
log keeps them. What of a request is no row of the model (text before its preprocessing, tensors that lie in the store,
garbage) is passed over. Ground truth comes from `feedback`, where the last word on a request counts, or from the
results that Redis still has.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from services.optimizer import rows
from services.optimizer.rejections import Rejection
from services.optimizer.rows import Answered
from shared import kafka, oip, replies, topics
from shared.codec import decode_event
from shared.errors import AiaasError, LogUnavailable
from shared.events import FeedbackGiven
from shared.requests import derived_id, from_kafka

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiokafka import AIOKafkaConsumer, ConsumerRecord

    from shared.optimization import LoggedRequests
    from shared.settings import PlatformSettings
    from shared.signature import Signature
    from shared.tensors import Array

MAX_BYTES: Final = 1024**3
"""Of rows that are held while drawing."""
_ASKED_AT_ONCE: Final = 500
_POLL_MS: Final = 1000

Range = dict[TopicPartition, tuple[int, int]]
"""The first offset and the one behind the last, by partition."""


@dataclass(frozen=True)
class Drawn:
    """A data set as a file, and where it was drawn."""

    content: bytes
    rows: int
    offsets: Mapping[str, tuple[int, int]]


class Drawer:
    """Draws with clients of its own, since it is seldom done and long polls would be in others' way."""

    def __init__(self, settings: PlatformSettings) -> None:
        self._settings = settings

    async def draw(self, source: LoggedRequests, own: str, signatures: Mapping[str, Signature]) -> Drawn:
        """The data set of a source; `own` is the model whose requests are meant if it names none.

        Raises:
            Rejection: there is nothing in that range, or nobody knows what its rows look like.
            LogUnavailable, RepliesUnavailable: not the model's fault.
        """
        model = source.model or own
        signature = signatures.get(model)
        if signature is None:
            found = f"No version of model {model!r} answers, so it is not known what rows its requests have"
            raise Rejection("data_unusable", found)
        try:
            async with kafka.started(lambda: kafka.consumer(self._settings), "drawing") as consumer:
                found_range = await self._range(consumer, source, model)
                asked = [each async for each in self._requests(consumer, found_range, signature, source.max_rows)]
                answered = await self._with_truth(consumer, source, model, asked, signature)
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not give the data: {err!r}") from err
        arrays = rows.together(answered, source.max_rows)
        if not arrays:
            found = f"{len(asked)} requests of {model!r} lie in that range, and none has rows and {source.labels}"
            raise Rejection("data_unusable", found)
        offsets = {f"{at.topic}/{at.partition}": span for at, span in found_range.items()}
        return Drawn(rows.packed(arrays), len(next(iter(arrays.values()))), offsets)

    async def _range(self, consumer: AIOKafkaConsumer, source: LoggedRequests, model: str) -> Range:
        """Times as offsets, and what is left open as what there is."""
        partitions = await self._partitions(self._settings.topics.requests(model))
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        first = await _at(consumer, partitions, source.from_ms, begins, ends)
        last = await _at(consumer, partitions, source.until_ms, ends, ends)
        found = {}
        for at in partitions:
            begin = first[at] if source.from_offsets is None else source.from_offsets.get(at.partition, ends[at])
            end = last[at] if source.until_offsets is None else source.until_offsets.get(at.partition, 0)
            if (begin := max(begin, begins[at])) < (end := min(end, ends[at])):
                found[at] = (begin, end)
        return found

    async def _partitions(self, topic: str) -> list[TopicPartition]:
        """Of a topic that nobody here follows, so that no consumer knows it."""
        async with kafka.started(lambda: AIOKafkaAdminClient(**kafka.client_options(self._settings)), topic) as admin:
            [found] = await admin.describe_topics([topic])
        return [TopicPartition(topic, number) for number in sorted(each["partition"] for each in found["partitions"])]

    async def _requests(
        self, consumer: AIOKafkaConsumer, span: Range, signature: Signature, most: int
    ) -> AsyncIterator[Answered]:
        taken = byte_size = 0
        async for record in _records(consumer, span):
            each = _asked(record, signature)
            if each is None:
                continue
            taken += len(each)
            byte_size += sum(array.nbytes for array in each.inputs.values())
            yield each
            if taken >= most or byte_size > MAX_BYTES:
                return

    async def _with_truth(
        self,
        consumer: AIOKafkaConsumer,
        source: LoggedRequests,
        model: str,
        asked: list[Answered],
        signature: Signature,
    ) -> list[Answered]:
        match source.labels:
            case "teacher":
                return asked
            case "feedback":
                given = await self._feedback(consumer, model, {each.request_id for each in asked})
                found: list[tuple[Answered, Mapping[str, Array] | None]] = [
                    (each, rows.of_feedback(given[each.request_id], len(each), signature))
                    for each in asked
                    if each.request_id in given
                ]
            case "results":
                found = await self._results(model, asked, signature)
        return [Answered(each.request_id, each.inputs, truth) for each, truth in found if truth is not None]

    async def _feedback(self, consumer: AIOKafkaConsumer, model: str, ids: set[str]) -> dict[str, FeedbackGiven]:
        partitions = await self._partitions(self._settings.topics.name(topics.FEEDBACK))
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        given = {}
        async for record in _records(consumer, {at: (begins[at], ends[at]) for at in partitions}):
            try:
                event = decode_event(FeedbackGiven, record.value)
            except AiaasError:
                continue
            if event.model == model and event.request_id in ids:
                given[event.request_id] = event
        return given

    async def _results(
        self, model: str, asked: list[Answered], signature: Signature
    ) -> list[tuple[Answered, Mapping[str, Array] | None]]:
        found: list[tuple[Answered, Mapping[str, Array] | None]] = []
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(replies.connect(self._settings))
            for start in range(0, len(asked), _ASKED_AT_ONCE):
                some = asked[start : start + _ASKED_AT_ONCE]
                results = await redis.get([(model, each.request_id) for each in some])
                found += [
                    (each, None if result is None else rows.of_result(result, len(each), signature))
                    for each, result in zip(some, results, strict=True)
                ]
        return found


def _asked(record: ConsumerRecord, signature: Signature) -> Answered | None:
    """A record as rows; None if it holds none of the model's."""
    try:
        about = from_kafka(record.headers)
        request = oip.decode_request(about.content_type, record.value or b"", about.header_length)
    except AiaasError:
        return None
    inputs = rows.inputs_of(request, signature)
    request_id = about.request_id or derived_id(record.topic, record.partition, record.offset)
    return None if inputs is None else Answered(request_id, inputs)


async def _records(consumer: AIOKafkaConsumer, span: Range) -> AsyncIterator[ConsumerRecord]:
    """The records of a range, one partition after the other, so that their order is the same each time."""
    for at, (begin, end) in span.items():
        consumer.assign([at])
        consumer.seek(at, begin)
        while await consumer.position(at) < end:
            for record in (await consumer.getmany(at, timeout_ms=_POLL_MS)).get(at, ()):
                if record.offset < end:
                    yield record


async def _at(
    consumer: AIOKafkaConsumer,
    partitions: list[TopicPartition],
    time_ms: int | None,
    otherwise: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    """The first offsets from a moment on; the ends where nothing was written since."""
    if time_ms is None:
        return dict(otherwise)
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, time_ms))
    return {at: ends[at] if found.get(at) is None else found[at].offset for at in partitions}
