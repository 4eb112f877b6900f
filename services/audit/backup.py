"""A copy of the artifact store from which a platform can go on: `aiaas audit backup`.

What names something else is listed first and copied last: manifests and checkpoints of the archive, which name files,
whose requests name objects. So the copy has all that its archive names whenever it was interrupted, and the archiver
may go on writing meanwhile. Objects never change under their names, so what is in the copy already is not copied again;
each is held against the digest in its name on the way, and one that does not match is named instead of copied.

Files of requests and results that an erasure or retention took out of the archive go out of the copy too, by the word
of the manifests alone: what the store lost otherwise stays in the copy. Not copied: what is being written
(`incoming/`), and what replays left (`replays/`).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from services.audit import archive_reader, layout
from services.audit.layout import ROOT
from services.audit.store import ArchiveStore
from shared.artifacts import ArtifactStore
from shared.errors import ArtifactNotFound, Conflict, DigestMismatch, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Tell = Callable[[str, float | None], None]

_AT_ONCE: Final = 8
_PASSES: Final = 3
"""What an erasure takes away while it is copied is looked for again with the manifests of after it."""
_OBJECT: Final = re.compile(r"sha256/([0-9a-f]{2})/([0-9a-f]{62})")
_FILE: Final = re.compile(r"-([0-9a-f]{16})\.parquet$")
_DIGITS: Final = 20
_PASSING: Final = ("incoming/", "replays/")


@dataclass
class Copied:
    """What a backup did."""

    objects: int = 0
    files: int = 0
    """Of the archive."""
    byte_size: int = 0
    there: int = 0
    """Were in the copy before."""
    removed: int = 0
    """Files that the archive does not have any more, by erasure or retention."""
    damaged: list[str] = field(default_factory=list)
    """Keys whose content is not what their name says: not copied."""


async def backup(source_url: str, to_url: str, tell: Tell = lambda _words, _part: None) -> Copied:
    """Bring a copy of a store up to date.

    Raises:
        InvalidInput: it would be its own copy.
        Conflict: the archive lost files again and again while it was copied.
        StoreUnavailable, TooLarge: one of both failed; the same call again goes on.
    """
    if source_url.rstrip("/") == to_url.rstrip("/"):
        raise InvalidInput("the copy would be the store itself")
    copying = _Copying(source_url, to_url, tell)
    for _ in range(_PASSES):
        if await copying.once():
            return copying.found
    raise Conflict("the archive changed while it was copied, each time: run it again")


class _Copying:
    def __init__(self, source_url: str, to_url: str, tell: Tell) -> None:
        self._source, self._to = ArchiveStore(source_url), ArchiveStore(to_url)
        self._objects, self._copies = ArtifactStore(source_url), ArtifactStore(to_url)
        self._tell = tell
        self.found = Copied()
        self._gone: list[str] = []

    async def once(self) -> bool:
        """One pass over everything; whether all was there that was listed."""
        self._gone, self.found.there, self.found.damaged = [], 0, []
        commits = [key for key in await self._source.keys(f"{ROOT}/") if _is_commit(key)]
        contents = [key for key in await self._source.keys("") if not _is_commit(key) and not key.startswith(_PASSING)]
        already = {key async for key, _ in self._to.listed("")}
        commits.sort(key=_in_turn)
        done, total = 0, len(contents) + len(commits)
        for keys, at_once in ((contents, _AT_ONCE), (commits, 1)):
            for start in range(0, len(keys), at_once):
                some = keys[start : start + at_once]
                await asyncio.gather(*(self._bring(key, already) for key in some))
                done += len(some)
                self._tell(f"{done} of {total} objects", done / total)
        await self._drop(already - {*contents, *commits})
        return not self._gone

    async def _bring(self, key: str, already: set[str]) -> None:
        named = _OBJECT.fullmatch(key)
        work: Awaitable[int | None] = (
            self._object(named[1] + named[2]) if named else self._file(key, there=key in already)
        )
        try:
            size_bytes = await work
        except ArtifactNotFound:
            self._gone.append(key)
        except DigestMismatch:
            self.found.damaged.append(key)
        else:
            if size_bytes is None:
                self.found.there += 1
                return
            self.found.byte_size += size_bytes
            self.found.objects += named is not None
            self.found.files += named is None

    async def _object(self, sha256: str) -> int | None:
        """Copy an object, by pieces; None if one of its size is there, which is written whole or not at all."""
        artifact = await self._objects.named(sha256)
        if await self._copies.exists(artifact):
            return None
        content = self._objects.stream(artifact)
        await self._copies.put_stream(content, limit_bytes=artifact.byte_size, expected_sha256=sha256)
        return artifact.byte_size

    async def _file(self, key: str, *, there: bool) -> int | None:
        if there:
            return None
        content = await self._source.get(key)
        named = _FILE.search(key)
        if named is not None and not layout.sha256(content).startswith(named[1]):
            raise DigestMismatch(key)
        await self._to.put(key, content)
        return len(content)

    async def _drop(self, keys: set[str]) -> None:
        """Take out of the copy what its manifests name no more."""
        for key in sorted(keys):
            manifest = await archive_reader.manifest_of(self._to, key)
            if manifest is not None and not archive_reader.names(manifest, key):
                await self._to.delete(key)
                self.found.removed += 1


def _in_turn(key: str) -> tuple[str, int, bool, str]:
    """As the archiver wrote them: a segment's manifest, named by where it begins, its checkpoint, by where it ends."""
    folder, _, name = key.rpartition("/")
    partition, _, kind = folder.rpartition("/")
    offset = name[:_DIGITS]
    return partition, int(offset) if offset.isdecimal() else 0, kind != "checkpoints", key


def _is_commit(key: str) -> bool:
    return key.startswith(f"{ROOT}/") and key.endswith(".json")
