"""Copies of replies on topics that requests name: an OIP v2 JSON body, the request's key, `ce_id` and `x-*` headers.

They are for convenience, sent apart from outcomes and with a bounded wait: a topic that does not take them costs its
own copies, never an outcome. At least once: a crash between copy and commit repeats the copy.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import orjson
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from shared import logs
from shared.codec import cloud_event_headers
from shared.errors import AiaasError, InvalidInput
from shared.oip import JSON
from shared.oip_response import encode_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka import AIOKafkaProducer

    from services.worker.ledger import ReplyCopy
    from services.worker.settings import WorkerSettings
    from shared.results import Result

_WAIT_S = 2.0
_SKIP_S = 30.0
"""How long a topic that took too long gets no more copies."""


def check_topic(topic: str, settings: WorkerSettings) -> None:
    """Refuse topics that configuration does not allow.

    Raises:
        InvalidInput: not below an allowed prefix, or one of ours.
    """
    if settings.topics.is_ours(topic) or not any(topic.startswith(p) for p in settings.reply_topic_prefixes):
        raise InvalidInput(f"reply-topic {topic[:200]!r} is not below a prefix that AIAAS_REPLY_TOPIC_PREFIXES allows")


class ReplyCopies:
    """Sends copies through a producer of its own, so that a bad topic can't hold up outcomes."""

    def __init__(self, producer: AIOKafkaProducer, source: str) -> None:
        self._producer = producer
        self._source = source
        self._skipped: dict[str, float] = {}

    async def send(self, copies: Sequence[ReplyCopy]) -> None:
        """Send copies in order and wait for them, boundedly. What can't be sent is logged."""
        for copy in copies:
            if time.monotonic() < self._skipped.get(copy.topic, 0.0):
                continue
            headers = cloud_event_headers(
                event_type="InferenceAnswered", source=self._source, event_id=copy.result.id, content_type=JSON
            )
            try:
                async with asyncio.timeout(_WAIT_S):
                    await self._producer.send_and_wait(
                        copy.topic, _body(copy.result), key=copy.key, headers=headers + list(copy.headers)
                    )
            except MessageSizeTooLargeError as err:  # this one's fault, not its topic's
                logs.get().warning("reply copy dropped", topic=copy.topic, request_id=copy.result.id, error=repr(err))
            except (KafkaError, TimeoutError) as err:
                self._skipped[copy.topic] = time.monotonic() + _SKIP_S
                logs.get().warning("reply copies skipped", topic=copy.topic, seconds=_SKIP_S, error=repr(err))


def _body(result: Result) -> bytes:
    if result.error is not None:
        return orjson.dumps({"error": result.error["message"], "code": result.error["code"], "status": result.status})
    try:
        return encode_json(
            model_name=result.model_name, model_version=result.model_version or 0, outputs=result.outputs
        )
    except InvalidInput as err:  # BYTES that are not text have no JSON form
        return orjson.dumps({"error": err.message, "code": AiaasError.code, "status": result.status})
