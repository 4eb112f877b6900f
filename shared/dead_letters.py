"""Dead letters: records that failed before they ran, with their cause, kept for people.

The value and key are the original bytes; where they came from and why they are here is in `x-*` headers. The topic
takes records up to twice the bound of a request, so that any request fits. Where a topic was
configured otherwise (packed, or with a higher bound) a record may be larger still: of that, only the headers are kept,
and `x-omitted-bytes` says how much it was. Its coordinates say where all of it is, as long as its topic keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from shared import topics
from shared.codec import cloud_event_headers
from shared.errors import AiaasError, LogUnavailable
from shared.topics import MAX_RECORD_BYTES

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer, ConsumerRecord

    from shared.settings import PlatformSettings

_MESSAGE_CHARS = 500
_CONTENT_TYPE_BYTES = 200
_KEPT_BYTES = 2 * MAX_RECORD_BYTES
"""The largest key and value together. A record that Kafka refuses would cost the idempotent producer its sequence."""


class DeadLetters:
    """Writes to `dead-letters`."""

    def __init__(self, settings: PlatformSettings, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._source = settings.instance
        self._topic = settings.topics.name(topics.DEAD_LETTERS)

    async def publish(self, record: ConsumerRecord, error: AiaasError, attempt: int = 1) -> None:
        """Keep `record`, which failed with `error`; returns when it is acknowledged.

        Raises:
            LogUnavailable: Kafka did not acknowledge it.
        """
        about = {
            "x-original-topic": record.topic,
            "x-original-partition": str(record.partition),
            "x-original-offset": str(record.offset),
            "x-error-code": error.code,
            "x-error": error.message[:_MESSAGE_CHARS],
            "x-attempt": str(attempt),
        }
        content_type = next(
            (v for k, v in record.headers if v and k.lower() == "content-type"), b"application/octet-stream"
        )
        headers = cloud_event_headers(
            event_type="DeadLettered",
            source=self._source,
            content_type=content_type[:_CONTENT_TYPE_BYTES].decode("ascii", "replace"),
        )
        key, value = record.key, record.value
        if (size_bytes := len(key or b"") + len(value or b"")) > _KEPT_BYTES:
            about["x-omitted-bytes"] = str(size_bytes)
            key = value = None
        headers += [(name, text.encode("utf-8", "replace")) for name, text in about.items()]
        if key is None and value is None:
            value = b""  # a record has a key or a value, says aiokafka; of this one the headers are all there is
        try:
            await self._producer.send_and_wait(self._topic, value, key=key, headers=headers)
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not acknowledge a dead letter: {err!r}") from err
