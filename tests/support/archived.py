"""An archive without Kafka: a writer's segments of outcomes that a test makes up."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from services.audit import signing
from services.audit.layout import Log
from services.audit.records import Gone, RecordedRequest
from services.audit.segment import Segment
from services.audit.settings import AuditSettings
from services.audit.store import ArchiveStore
from services.audit.writer import Lane, Writer
from shared import topics
from shared.codec import cloud_event_headers, encode_event
from shared.results import Result
from shared.tensors import Tensor, output_digest
from shared.topics import outcome_key
from support.facts import receipt

if TYPE_CHECKING:
    from pathlib import Path

    from services.audit.judge import Verdict
    from shared.events import Event
    from shared.outcome_events import Receipt

CLUSTER = "a-cluster"
T0_MS = 1_764_000_000_000


def value_of(offset: int) -> bytes:
    """The value of the request at an offset."""
    return b'{"inputs": [%d]}' % offset


def outputs_of(offset: int) -> tuple[Tensor, ...]:
    """What it was answered with."""
    return (Tensor("y", "FP32", (1, 2), offset.to_bytes(8, "little")),)


@dataclass
class Archive:
    """Outcomes of one model `m`, all in partition 0 of the outcome log, archived in segments."""

    settings: AuditSettings
    lane: Lane = field(init=False)
    models: Lane = field(init=False)

    def __post_init__(self) -> None:
        names = self.settings.topics
        self.store = ArchiveStore(self.settings.artifact_store_url)
        self.signer = signing.load_or_make(self.settings.audit_key_path)
        self.writer = Writer(self.store, self.signer, "test")
        self.lane = Lane(Log(CLUSTER, names.name(topics.OUTCOMES), 0), 0, Segment(0, 0))
        self.models = Lane(Log(CLUSTER, names.name(topics.MODELS), 0), 0, Segment(0, 0))

    @property
    def topic(self) -> str:
        """The model's request topic."""
        return self.settings.topics.requests("m")

    def receipt(self, offset: int, **fields: Any) -> Receipt:
        """The outcome of the request at an offset."""
        about = {
            "request_id": f"r{offset}",
            "input_sha256": hashlib.sha256(value_of(offset)).hexdigest(),
            "output_sha256": output_digest(outputs_of(offset)),
            "model_version": 1,
            "tenant": "even" if offset % 2 == 0 else "odd",
        }
        return receipt(offset, topic=self.topic, **{**about, **fields})

    def add(
        self,
        offset: int,
        verdict: Verdict = "accepted",
        request: Gone | None = None,
        result: Gone | None = None,
        **fields: Any,
    ) -> None:
        """One more outcome, of the request at an offset."""
        made = self.receipt(offset, **fields)
        record = self._record(self.lane, outcome_key(self.topic, 0), encode_event(made))
        self.lane.segment.add(record, verdict)
        self.lane.chain.add(record.key, record.value)
        if verdict != "accepted":
            return
        asked = RecordedRequest(made.request, T0_MS + offset, b"key", (("ce_id", b"r%d" % offset),), value_of(offset))
        answer = Result(
            id=made.request_id, status="succeeded", model_name="m", model_version=1, outputs=outputs_of(offset)
        )
        self.lane.segment.add_exchange(record, made, request or asked, result or answer)
        self.lane.marks[self.topic, 0] = offset

    def add_event(self, event: Event, timestamp_ms: int) -> None:
        """One more record of the registry's log."""
        headers = cloud_event_headers(event_type=type(event).__name__, source="test")
        record = self._record(self.models, b"m", encode_event(event))
        record.timestamp, record.headers = timestamp_ms, headers
        self.models.segment.add(record, None)
        self.models.chain.add(record.key, record.value)

    def write(self) -> None:
        """Write a segment of what was added."""
        asyncio.run(self.awrite())

    async def awrite(self) -> None:
        """The same, on a loop that runs."""
        await self.writer.write(self.lane)
        await self.writer.write(self.models)

    @staticmethod
    def _record(lane: Lane, key: bytes, value: bytes) -> SimpleNamespace:
        offset = lane.segment.next
        return SimpleNamespace(offset=offset, timestamp=T0_MS + 1000 * offset, key=key, value=value, headers=[])


def archive(directory: Path) -> Archive:
    """An empty archive in a directory."""
    settings = AuditSettings(
        artifact_store_url=(directory / "store").as_uri(), data_dir=directory / "data", topic_prefix="t."
    )
    return Archive(settings)


def archived(directory: Path, count: int = 12, a_segment: int = 4) -> Archive:
    """An archive of so many outcomes, with a repeat in it."""
    made = archive(directory)
    for offset in range(count):
        made.add(offset)
        if offset == 1:
            made.add(0, "repeat")
        if offset % a_segment == a_segment - 1:
            made.write()
    return made
