"""Keeping what may be kept: retention by model, and the removal of files that nobody names.

A file of requests and results is for one model and one day; when it is older than its model's retention, the next
revision of its manifest says that it expired, then it is deleted. Receipts and raw records stay: what was answered, and
with which digest, can be verified for ever. Files that are too old are found by their folders. A crash between the
steps, here, in erasure or in writing, leaves a file that no manifest names: those are removed when they are an hour
old, and looked for among the files of the last day only, so that a large archive is not read again and again.

What replays put into the store (large requests on their way to a worker, large answers on their way back) is of use for
minutes, and is removed when it is a day old.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from msgspec import structs

from services.audit import archive_reader, layout
from services.audit.layout import ROOT
from services.audit.revisions import revise
from shared import logs
from shared.errors import AiaasError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.audit.settings import AuditSettings
    from services.audit.store import ArchiveStore

_UNNAMED_FOR: Final = timedelta(hours=1)
_LOOKED_FOR: Final = timedelta(hours=25)
_REPLAYED_FOR: Final = timedelta(days=1)


async def run(settings: AuditSettings, store: ArchiveStore) -> None:
    """Keep retention until cancelled. What fails is tried again the next time."""
    while True:
        try:
            now = datetime.now(UTC)
            removed = await expire(store, settings.audit_retention_days, now.date()) + await sweep(store, now)
            if removed:
                logs.get().info("removed from the archive", files=len(removed))
            if swept := await sweep_replays(store, now):
                logs.get().info("removed what replays left", files=len(swept))
        except AiaasError as err:
            logs.get().warning("retention not kept", error=err.message)
        await asyncio.sleep(settings.audit_sweep_interval_s)


async def expire(store: ArchiveStore, days: Mapping[str, int], today: date) -> list[str]:
    """Remove requests and results that are older than their model's retention; returns the keys of removed files.

    Raises:
        StoreUnavailable, Conflict: the store failed, or somebody revised a manifest meanwhile; some may be done.
    """
    removed: list[str] = []
    for log in await archive_reader.all_logs(store) if days else []:
        for model in await store.folders(f"{log.root}/exchanges/"):
            kept = days.get(model.removeprefix("model="), days.get("*"))
            if kept is None:
                continue
            for day in await store.folders(f"{log.root}/exchanges/{model}/"):
                if date.fromisoformat(day.removeprefix("day=")) + timedelta(days=kept) < today:
                    for key in await store.keys(f"{log.root}/exchanges/{model}/{day}/"):
                        await _expire(store, key)
                        removed.append(key)
    return removed


async def _expire(store: ArchiveStore, key: str) -> None:
    manifest = await archive_reader.manifest_of(store, key)
    if manifest is not None and archive_reader.names(manifest, key):
        files = tuple(structs.replace(file, expired=True) if file.key == key else file for file in manifest.files)
        await revise(store, manifest, files, "retention: 1 file")
    await store.delete(key)


async def sweep(store: ArchiveStore, now: datetime) -> list[str]:
    """Remove files of the last day that no manifest names; returns their keys.

    Raises:
        StoreUnavailable: the store failed; some may be done.
    """
    removed: list[str] = []
    async for key, written_at in store.listed(f"{ROOT}/"):
        if layout.place_of(key) is None or not _UNNAMED_FOR < now - written_at < _LOOKED_FOR:
            continue
        manifest = await archive_reader.manifest_of(store, key)
        if manifest is None or not archive_reader.names(manifest, key):
            await store.delete(key)
            removed.append(key)
    return removed


async def sweep_replays(store: ArchiveStore, now: datetime) -> list[str]:
    """Remove what replays put into the store a day ago or earlier; returns the keys.

    Raises:
        StoreUnavailable: the store failed; some may be done.
    """
    old = [key async for key, written_at in store.listed("replays/") if now - written_at > _REPLAYED_FOR]
    for key in old:
        await store.delete(key)
    return old
