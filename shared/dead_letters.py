"""Dead letters: records that failed before they ran, with their cause, kept for people.

The value and key are the original bytes; where they came from and why they are here is in `x-*` headers. The topic
takes records up to twice the bound of a request, so that any request fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from shared import topics
from shared.codec import cloud_event_headers
from shared.errors import AiaasError, LogUnavailable

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer, ConsumerRecord

    from shared.settings import PlatformSettings

_MESSAGE_BYTES = 500


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
            "x-error": error.message[:_MESSAGE_BYTES],
            "x-attempt": str(attempt),
        }
        content_type = next(
            (v for k, v in record.headers if v and k.lower() == "content-type"), b"application/octet-stream"
        )
        headers = cloud_event_headers(
            event_type="DeadLettered", source=self._source, content_type=content_type.decode("ascii", "replace")
        )
        headers += [(name, value.encode()) for name, value in about.items()]
        # A record has a key or a value, says aiokafka; of one that had neither, the headers are all there is to keep.
        value = b"" if record.key is None and record.value is None else record.value
        try:
            await self._producer.send_and_wait(self._topic, value, key=record.key, headers=headers)
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not acknowledge a dead letter: {err!r}") from err
