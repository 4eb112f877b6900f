"""What of a test's log the archiver has archived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.audit import archive_reader
from services.audit.records import Selection
from services.audit.settings import AuditSettings
from services.audit.store import ArchiveStore
from shared import topics
from support.waiting import eventually

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from services.audit.records import RecordedOutcome
    from services.audit.source import Source
    from shared.settings import PlatformSettings
    from support.backbone import Backbone


def archiving(backbone: Backbone, settings: PlatformSettings, *, segment_rows: int) -> AuditSettings:
    """Of an archiver of the same platform, in no time to lose."""
    return backbone.settings(
        AuditSettings,
        audit_interval_s=0.2,
        audit_segment_rows=segment_rows,
        topic_prefix=settings.topic_prefix,
        artifact_store_url=settings.artifact_store_url,
    )


async def everything(opened: AbstractAsyncContextManager[Source], **selected: Any) -> list[RecordedOutcome]:
    """All that a source has of a selection."""
    async with opened as source:
        return [outcome async for outcome in source.outcomes(Selection(**selected))]


async def archived_up_to(
    settings: AuditSettings, ends: dict[int, int], *, life: int = 0, within_s: float = 60.0
) -> None:
    """Wait until a life of the outcome log is archived up to these offsets, by partition."""
    store = ArchiveStore(settings.artifact_store_url)

    async def look() -> bool:
        logs = await archive_reader.logs_of(store, settings.topics.name(topics.OUTCOMES))
        assert logs, "nothing is archived"
        assert logs[-1].life == life
        for partition, end in ends.items():
            places = await archive_reader.segments(store, logs[-1], partition)
            reached = (await archive_reader.manifest_at(store, places[-1])).next if places else 0
            assert reached >= end, f"partition {partition} is archived up to {reached} of {end}"
        return True

    await eventually(look, within_s=within_s, what="an archive of the outcome log")
