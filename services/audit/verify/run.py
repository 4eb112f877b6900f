"""`aiaas audit verify`: the archive, Kafka, or both, into one report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.audit.kafka_source import reached
from services.audit.store import ArchiveStore
from services.audit.verify.archive import ArchiveVerifier, Walks
from services.audit.verify.kafka import KafkaVerifier
from services.audit.verify.report import Report
from shared.artifacts import ArtifactStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.audit.signing import Checkpoint
    from shared.settings import PlatformSettings


async def verify(
    settings: PlatformSettings,
    *,
    archive: bool = True,
    kafka: bool = True,
    keys: frozenset[str] | None = None,
    known: Sequence[Checkpoint] = (),
) -> Report:
    """Verify what is asked for.

    Raises:
        StoreUnavailable, LogUnavailable, RepliesUnavailable: something that was to be looked at did not answer.
    """
    report, walks = Report(), Walks()
    if archive:
        store = ArchiveStore(settings.artifact_store_url)
        artifacts = ArtifactStore(settings.artifact_store_url)
        walks = await ArchiveVerifier(store, artifacts, settings.topics, report, keys, known).verify()
    if kafka:
        async with reached(settings) as found:
            await KafkaVerifier(settings, found, report).verify(walks)
    return report
