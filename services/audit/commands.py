"""What `aiaas audit` does, as the command line calls it: settings and plain values in, plain values out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from services.audit import archive_reader, backup, erase, restore, signing
from services.audit.export import bundle
from services.audit.records import Selection
from services.audit.sources import explained, milliseconds, models_as_of
from services.audit.store import ArchiveStore
from shared import topics
from shared.errors import LogUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from services.audit.backup import Copied
    from shared.settings import PlatformSettings

_RESTORED_S: Final = 300.0
__all__ = ["backed_up", "checkpoints", "erased", "explained", "exported", "models_as_of", "restored"]


async def exported(
    settings: PlatformSettings, model: str, since: str | None, until: str | None, out: Path
) -> dict[str, Any]:
    """Write a bundle; see `export.bundle.export`."""
    selection = Selection(
        model=model,
        since_ms=None if since is None else milliseconds(since),
        until_ms=None if until is None else milliseconds(until),
    )
    about = await bundle.export(settings, selection, out)
    return {"out": str(out), "requests": len(about["selected"]), "logs": len(about["logs"]), "absent": about["absent"]}


async def erased(settings: PlatformSettings, model: str, request_ids: Sequence[str], tenant: str | None) -> int:
    """Erase from the archive; see `erase.erase`."""
    store = ArchiveStore(settings.artifact_store_url)
    return await erase.erase(store, erase.Erasure(model, frozenset(request_ids), tenant))


async def backed_up(settings: PlatformSettings, to_url: str, tell: Callable[[str, float | None], None]) -> Copied:
    """Copy the artifact store; see `backup.backup`."""
    return await backup.backup(settings.artifact_store_url, to_url, tell)


async def restored(settings: PlatformSettings) -> int:
    """Put the registry's log back; see `restore.restore`.

    Raises:
        LogUnavailable: it took too long.
    """
    try:
        async with asyncio.timeout(_RESTORED_S):
            return await restore.restore(settings)
    except TimeoutError as err:
        raise LogUnavailable(f"Kafka at {settings.kafka_bootstrap_servers} does not answer") from err


async def checkpoints(settings: PlatformSettings) -> list[dict[str, str]]:
    """The newest checkpoint of every partition of every log, for an auditor to keep."""
    store, found = ArchiveStore(settings.artifact_store_url), []
    for topic in (topics.OUTCOMES, topics.MODELS):
        for log in await archive_reader.logs_of(store, settings.topics.name(topic)):
            for partition in await archive_reader.partitions_of(store, log):
                for key in (await store.keys(log.checkpoints(partition)))[-1:]:
                    checkpoint = signing.decode_checkpoint(await store.get(key))
                    found.append(
                        {
                            "statement": checkpoint.statement,
                            "signature": checkpoint.signature,
                            "public_key": checkpoint.public_key,
                        }
                    )
    return found
