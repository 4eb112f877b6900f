"""How the archive stands, for `aiaas doctor`: how far behind the log it is, and who signed it last.

Nobody is asked who runs: an archiver that runs is one that keeps up. Outcomes that wait for long are the sign that none
does, whatever the reason.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.audit import signing
from services.audit.kafka_source import kafka_offsets, log_portions, reached
from services.audit.opening import standing
from services.audit.settings import AuditSettings
from services.audit.store import ArchiveStore
from shared import topics
from shared.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aiokafka import AIOKafkaConsumer, TopicPartition

    from services.audit.kafka_source import Clients
    from services.audit.opening import Standing
    from shared.settings import PlatformSettings

_MS_PER_S: Final = 1000


@dataclass(frozen=True, slots=True)
class ArchiveState:
    """What was found."""

    archived: int
    """Records of the outcome log that are in the archive, of this life."""
    waiting: int
    """Records of it that Kafka has and the archive has not."""
    waiting_s: float
    """How long the first of those has waited; 0 if none does."""
    lost: int
    """Records that Kafka dropped before they were archived."""
    goes_on: bool
    """Whether Kafka's log is the archived one; an archiver begins another life of it otherwise."""
    checkpoint_at: str | None
    """When the last checkpoint was signed, RFC 3339; None if there is none."""
    checkpoint_key: str | None
    """Whose it is, in hex."""
    key: str | None
    """The public key of the private key that is on this machine; None if there is none."""
    key_path: str
    key_is_private: bool
    """Whether nobody but its owner can read it."""


async def state(settings: PlatformSettings, within_s: float) -> ArchiveState:
    """Look.

    Raises:
        LogUnavailable, StoreUnavailable: Kafka or the store did not answer.
        InvalidInput, DigestMismatch, ArtifactNotFound: the archive is damaged where it ends.
    """
    store, topic = ArchiveStore(settings.artifact_store_url), settings.topics.name(topics.OUTCOMES)
    async with reached(settings, within_s) as clients:
        found = await standing(store, clients.admin, clients.outcomes, clients.cluster_id, topic)
        nexts = {at: segment[0].next if segment and found.goes_on else 0 for at, segment in found.last.items()}
        firsts = {at: max(first, found.begins[at]) for at, first in nexts.items()}
        waiting, since_ms = await _waiting(clients, firsts)
    statement, public_key = await _last_checkpoint(store, found)
    path = AuditSettings(data_dir=settings.data_dir).audit_key_path
    return ArchiveState(
        archived=sum(segment[0].next for segment in found.last.values() if segment) if found.goes_on else 0,
        waiting=waiting,
        waiting_s=0.0 if since_ms is None else max(0.0, time.time() - since_ms / _MS_PER_S),
        lost=sum(firsts[at] - first for at, first in nexts.items()),
        goes_on=found.goes_on,
        checkpoint_at=None if statement is None else statement.created_at,
        checkpoint_key=public_key,
        key=_public_key(path),
        key_path=str(path),
        key_is_private=not path.exists() or not path.stat().st_mode & 0o077,
    )


async def _waiting(clients: Clients, nexts: Mapping[TopicPartition, int]) -> tuple[int, int | None]:
    """How many records are not archived, and when the first of them was appended, in ms since the epoch."""
    ends = await kafka_offsets(clients.outcomes, list(nexts), "end")
    count, since_ms = 0, None
    for at, first in nexts.items():
        if first < ends[at]:
            count += ends[at] - first
            begun_ms = await _appended_ms(clients.outcomes, at, first, ends[at])
            since_ms = min(begun_ms, since_ms or begun_ms) if begun_ms is not None else since_ms
    return count, since_ms


async def _appended_ms(consumer: AIOKafkaConsumer, at: TopicPartition, first: int, end: int) -> int | None:
    """The time of the first record from an offset on that Kafka still has."""
    consumer.assign([at])
    consumer.seek(at, first)
    async for portion in log_portions(consumer, at, first, end):
        return int(portion[0].timestamp)
    return None


async def _last_checkpoint(store: ArchiveStore, found: Standing) -> tuple[signing.Statement | None, str | None]:
    """The newest over all partitions of the log, and whose it is."""
    newest: tuple[signing.Statement | None, str | None] = None, None
    for at in found.last:
        for key in (await store.keys(found.log.checkpoints(at.partition)))[-1:]:
            checkpoint = signing.decode_checkpoint(await store.get(key))
            statement = checkpoint.read()
            if newest[0] is None or statement.created_at > newest[0].created_at:
                newest = statement, checkpoint.public_key
    return newest


def _public_key(path: Path) -> str | None:
    try:
        return signing.load(path).public_key
    except InvalidInput:
        return None
