"""The archive's objects in the artifact store, by name: put, get, list, delete.

Small files, whole in memory: a segment is bounded (`AIAAS_AUDIT_SEGMENT_BYTES`). What may be written only once is put
with `create`: of two writers one learns that it was second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import AlreadyExistsError

from services.audit import layout
from shared.artifacts import open_store, store_errors
from shared.errors import ArtifactNotFound, Conflict, DigestMismatch, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

MAX_OBJECT_BYTES: Final = 2 * 1024**3
"""No segment is as large: somebody else's file."""


class ArchiveStore:
    """Objects below `audit/` of one store. Each method raises `StoreUnavailable` if the store fails."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)

    async def put(self, key: str, content: bytes) -> None:
        """Write an object, in the place of one that is there."""
        with store_errors(key):
            await obstore.put_async(self._store, key, content)

    async def create(self, key: str, content: bytes) -> None:
        """Write an object that is not there yet.

        Raises:
            Conflict: it is.
        """
        with store_errors(key):
            try:
                await obstore.put_async(self._store, key, content, mode="create", use_multipart=False)
            except AlreadyExistsError as err:
                raise Conflict(f"{key} is there already") from err

    async def get(self, key: str, *, expected_sha256: str | None = None) -> bytes:
        """An object's content.

        Raises:
            ArtifactNotFound: it is not there.
            DigestMismatch: it is not what was expected.
            TooLarge: no file of an archive is so large.
        """
        with store_errors(key):
            found = await obstore.get_async(self._store, key)
            if found.meta["size"] > MAX_OBJECT_BYTES:
                raise TooLarge(f"{key} has {found.meta['size']} bytes")
            content = bytes(await found.bytes_async())
        if expected_sha256 not in {None, layout.sha256(content)}:
            raise DigestMismatch(f"{key} has SHA-256 {layout.sha256(content)}, its manifest says {expected_sha256}")
        return content

    async def exists(self, key: str) -> bool:
        """Whether an object is there."""
        try:
            with store_errors(key):
                await obstore.head_async(self._store, key)
        except ArtifactNotFound:
            return False
        return True

    async def folders(self, prefix: str) -> list[str]:
        """The names right below a prefix that have something below them."""
        with store_errors(prefix):
            found = await obstore.list_with_delimiter_async(self._store, prefix.rstrip("/"))
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"])

    async def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, sorted."""
        return sorted([key async for key, _ in self.listed(prefix)])

    async def listed(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """Keys below a prefix, and when each was written."""
        with store_errors(prefix):
            async for some in obstore.list(self._store, prefix.rstrip("/"), chunk_size=1000):
                for meta in some:
                    yield meta["path"], meta["last_modified"]

    async def delete(self, key: str) -> None:
        """Remove an object; one that is gone already is as good."""
        try:
            with store_errors(key):
                await obstore.delete_async(self._store, key)
        except ArtifactNotFound:
            return
