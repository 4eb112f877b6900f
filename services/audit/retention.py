"""Keeping what may be kept: retention by model, and the removal of files that nobody names.

A file of requests and results is for one model and one day; when it is older than its model's retention, the next
revision of its manifest says that it expired, then it is deleted. Receipts and raw records stay: what was answered, and
with which digest, can be verified for ever. A crash between the steps leaves a file that no manifest names, or one of
a segment that was never committed: those are removed when they are an hour old.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from msgspec import structs

from services.audit.layout import ROOT, decode_manifest, newest, places
from services.audit.revisions import revise
from shared import logs
from shared.errors import AiaasError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.audit.layout import File
    from services.audit.settings import AuditSettings
    from services.audit.store import ArchiveStore

_UNNAMED_FOR: Final = timedelta(hours=1)


async def run(settings: AuditSettings, store: ArchiveStore) -> None:
    """Keep retention until cancelled. What fails is tried again the next time."""
    while True:
        try:
            await keep(store, settings.audit_retention_days, datetime.now(UTC))
        except AiaasError as err:
            logs.get().warning("retention not kept", error=err.message)
        await asyncio.sleep(settings.audit_sweep_interval_s)


async def keep(store: ArchiveStore, days: Mapping[str, int], now: datetime) -> list[str]:
    """Remove what is too old and what nobody names; returns the keys of removed files.

    Raises:
        StoreUnavailable: the store failed; some may be done.
    """
    named: set[str] = set()
    removed: list[str] = []
    for place in newest(places(await store.keys(f"{ROOT}/"))):
        manifest = decode_manifest(await store.get(place.log.manifest(place.partition, place.first, place.revision)))
        old = [file for file in manifest.files if _is_old(file, days, now.date())]
        if old:
            files = tuple(structs.replace(file, expired=True) if file in old else file for file in manifest.files)
            await revise(store, manifest, files, f"retention: {len(old)} file(s)")
            for file in old:
                await store.delete(file.key)
        removed += [file.key for file in old]
        named |= {file.key for file in manifest.files if file not in old}
    async for key, written_at in store.listed(f"{ROOT}/"):
        if key.endswith(".parquet") and key not in named and now - written_at > _UNNAMED_FOR:
            await store.delete(key)
            removed.append(key)
    if removed:
        logs.get().info("removed from the archive", files=len(removed))
    return removed


def _is_old(file: File, days: Mapping[str, int], today: date) -> bool:
    kept = days.get(file.model or "", days.get("*"))
    if file.kind != "exchanges" or file.expired or kept is None or file.day is None:
        return False
    return date.fromisoformat(file.day) + timedelta(days=kept) < today
