"""Writing segments: files, then the manifest, then a signed checkpoint.

The manifest is the commit. It is created, never overwritten, and begins where the one before ended: so of two archivers
one learns that it was second, and a crash leaves a segment whole or not at all. Files of a segment that was not
committed are named by nobody; `retention` removes them. A checkpoint that a crash left out is made up for by `open`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from services.audit import layout, tables
from services.audit.chain import Chain
from services.audit.layout import File, Log, Manifest
from services.audit.segment import Segment
from shared import logs
from shared.codec import rfc3339

if TYPE_CHECKING:
    from services.audit.signing import Signer
    from services.audit.store import ArchiveStore


@dataclass
class Lane:
    """One partition of a log: where its archive stands, and the segment in the making."""

    log: Log
    partition: int
    segment: Segment
    chain: Chain = field(default_factory=Chain)
    head_before: bytes = bytes(32)
    previous: str | None = None
    marks: dict[tuple[str, int], int] = field(default_factory=dict)
    """The highest accepted request offset of each request partition whose outcomes lie here, up to `segment.next`."""


class Writer:
    """Writes segments of lanes."""

    def __init__(self, store: ArchiveStore, signer: Signer, instance: str) -> None:
        self._store = store
        self._signer = signer
        self._instance = instance

    async def write(self, lane: Lane) -> None:
        """Write the lane's segment, if anything is in it, and begin the next.

        Raises:
            StoreUnavailable: nothing is committed; the same call may be made again.
            Conflict: another archiver was first.
        """
        segment = lane.segment
        if not segment.records:
            return
        contents = await asyncio.to_thread(_files, lane)
        for file, content in contents:
            await self._store.put(file.key, content)
        manifest = self._manifest(lane, [file for file, _ in contents])
        encoded = manifest.encode()
        await self._store.create(lane.log.manifest(lane.partition, segment.first), encoded)
        lane.chain.cut()
        lane.previous, lane.head_before = layout.sha256(encoded), lane.chain.head
        lane.segment = Segment(segment.next, segment.next)
        await self.sign(manifest)
        logs.get().info(
            "archived",
            log=str(lane.log),
            partition=lane.partition,
            first=segment.first,
            next=segment.next,
            files=len(contents),
            size_bytes=sum(file.byte_size for file, _ in contents),
        )

    async def sign(self, manifest: Manifest) -> None:
        """Put the checkpoint of a segment beside it.

        Raises:
            StoreUnavailable: the segment has none yet.
        """
        checkpoint = self._signer.sign(
            cluster_id=manifest.cluster_id,
            topic=manifest.topic,
            life=manifest.life,
            partition=manifest.partition,
            first=manifest.first,
            offset=manifest.next,
            head_before=manifest.head_before,
            head=manifest.head,
            heads_sha256=manifest.heads_sha256,
        )
        key = manifest.log.checkpoint(manifest.partition, manifest.next)
        await self._store.put(key, msgspec.json.encode(checkpoint))

    def _manifest(self, lane: Lane, files: list[File]) -> Manifest:
        segment, times = lane.segment, [row["timestamp_ms"] for row in lane.segment.records]
        return Manifest(
            cluster_id=lane.log.cluster_id,
            topic=lane.log.topic,
            life=lane.log.life,
            partition=lane.partition,
            first=segment.first,
            next=segment.next,
            first_ms=min(times),
            last_ms=max(times),
            previous=lane.previous,
            head_before=lane.head_before.hex(),
            head=lane.chain.head.hex(),
            heads_sha256=lane.chain.so_far,
            marks={f"{topic}/{number}": highest for (topic, number), highest in sorted(lane.marks.items())},
            gaps=tuple(segment.gaps),
            files=tuple(files),
            written_by=self._instance,
            written_at=rfc3339(time.time_ns()),
        )


def _files(lane: Lane) -> list[tuple[File, bytes]]:
    """The files of a segment, by what they hold."""
    log, partition, segment = lane.log, lane.partition, lane.segment
    content = tables.encode(tables.RECORDS, segment.records, size_bytes=segment.records_bytes)
    key = log.records(partition, segment.first, segment.next, content)
    files = [(described(key, tables.RECORDS, content, len(segment.records)), content)]
    for (model, day), rows in segment.exchanges.items():
        content = tables.encode(tables.EXCHANGES, rows, size_bytes=segment.size_bytes)
        key = log.exchanges(model, day, partition, segment.first, segment.next, content)
        files.append((described(key, tables.EXCHANGES, content, len(rows), model, day), content))
    return files


def described(key: str, form: str, content: bytes, rows: int, model: str | None = None, day: str | None = None) -> File:
    """What a manifest says of a file."""
    return File(
        kind="records" if form == tables.RECORDS else "exchanges",
        key=key,
        schema=form,
        sha256=layout.sha256(content),
        byte_size=len(content),
        rows=rows,
        model=model,
        day=day,
    )
