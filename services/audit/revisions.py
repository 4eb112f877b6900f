"""The next revision of a manifest: what erasure and retention write. The one before keeps digests of what was there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import structs

from services.audit import layout
from shared.codec import rfc3339

if TYPE_CHECKING:
    from services.audit.layout import File, Manifest
    from services.audit.store import ArchiveStore


async def revise(store: ArchiveStore, manifest: Manifest, files: tuple[File, ...], reason: str) -> Manifest:
    """Write the revision after `manifest`, with these files.

    Raises:
        Conflict: somebody else wrote it first: look again.
        StoreUnavailable: the store failed.
    """
    revision = structs.replace(
        manifest,
        files=files,
        revision=manifest.revision + 1,
        supersedes=layout.sha256(manifest.encode()),
        reason=reason,
        written_at=rfc3339(time.time_ns()),
    )
    key = revision.log.manifest(revision.partition, revision.first, revision.revision)
    await store.create(key, revision.encode())
    return revision
