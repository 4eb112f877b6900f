"""Reading the archive: its logs, their segments in order, and the rows of a segment's files.

Files are read whole (a segment is bounded) and held against the digest in their manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from services.audit import tables
from services.audit.layout import ROOT, Log, decode_manifest, newest, place_of, places
from shared.errors import ArtifactNotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from services.audit.layout import File, Manifest, Place
    from services.audit.store import ArchiveStore
    from services.audit.tables import Row


async def logs_of(store: ArchiveStore, topic: str, cluster: str | None = None) -> list[Log]:
    """The logs of a topic in the archive: of every cluster, unless one is named, and every life."""
    found = []
    for name in await store.folders(f"{ROOT}/") if cluster is None else [cluster]:
        lives = await store.folders(f"{ROOT}/{name}/{topic}/")
        found += [Log(name, topic, int(life)) for life in lives if life.isdecimal()]
    return sorted(found)


async def all_logs(store: ArchiveStore) -> list[Log]:
    """Every log in the archive."""
    return [
        log
        for cluster in await store.folders(f"{ROOT}/")
        for topic in await store.folders(f"{ROOT}/{cluster}/")
        for log in await logs_of(store, topic, cluster)
    ]


async def partitions_of(store: ArchiveStore, log: Log) -> list[int]:
    """The partitions of a log of which something is archived."""
    return sorted(int(name[1:]) for name in await store.folders(f"{log.root}/") if name[1:].isdecimal())


async def segments(store: ArchiveStore, log: Log, partition: int) -> list[Place]:
    """Where the manifests of a partition's segments are, in order, each in its highest revision."""
    return newest(places(await store.keys(log.manifests(partition))))


async def manifest_at(store: ArchiveStore, place: Place) -> Manifest:
    """A manifest.

    Raises:
        ArtifactNotFound, InvalidInput: it is not there, or damaged.
    """
    return decode_manifest(await store.get(place.log.manifest(place.partition, place.first, place.revision)))


async def manifest_of(store: ArchiveStore, key: str) -> Manifest | None:
    """The newest revision of the manifest of the segment that a file is of; None if it was never committed.

    Raises:
        InvalidInput: the manifest is damaged.
    """
    place, found = place_of(key), None
    if place is None:
        return None
    while True:
        try:
            found = await manifest_at(store, place)
        except ArtifactNotFound:
            return found
        place = structs.replace(place, revision=place.revision + 1)


def names(manifest: Manifest, key: str) -> bool:
    """Whether a manifest has a file that is to be there."""
    return any(file.key == key and not file.expired for file in manifest.files)


async def manifests(store: ArchiveStore, log: Log, partition: int) -> AsyncIterator[Manifest]:
    """The manifests of a partition in order."""
    for place in await segments(store, log, partition):
        yield await manifest_at(store, place)


async def rows(store: ArchiveStore, file: File) -> Iterator[Row]:
    """The rows of a file.

    Raises:
        ArtifactNotFound, DigestMismatch, InvalidInput: it is not there, or not what its manifest says.
    """
    content = await store.get(file.key, expected_sha256=file.sha256)
    return tables.decode(file.schema if file.schema in tables.SCHEMAS else _form(file), content)


def _form(file: File) -> str:
    """A newer writer's form has the columns of ours."""
    return tables.RECORDS if file.kind == "records" else tables.EXCHANGES


async def latest(store: ArchiveStore, logs: Sequence[Log]) -> Log | None:
    """Of several logs the one of which something was archived last."""
    written: dict[Log, str] = {}
    for log in logs:
        for partition in await partitions_of(store, log):
            for place in (await segments(store, log, partition))[-1:]:
                manifest = await manifest_at(store, place)
                written[log] = max(written.get(log, ""), manifest.written_at)
    return max(written, key=lambda log: written[log], default=None)


def marks_of(manifest: Manifest) -> dict[tuple[str, int], int]:
    """The watermarks after a segment, by request topic and partition."""
    found: dict[tuple[str, int], int] = {}
    for key, highest in manifest.marks.items():
        topic, _, partition = key.rpartition("/")
        found[topic, int(partition)] = highest
    return found
