"""The artifact store: model files and large tensors, under the SHA-256 of their content.

An artifact is written once under `sha256/ab/cdef…` and never changes. Writing streams into a key of its own under
`incoming/`, hashing on the way, and renames when all is there and the digest is known; so a reader sees the whole
object or none, equal content lies there once, and a crash leaves nothing but `incoming/` keys. Reading hashes again:
what is returned is what the digest names, or `DigestMismatch`.

URLs are whatever obstore opens: `file://` (the directory is created), `memory://` (private to the object), `s3://`,
`gs://`, `az://`. Credentials come from the environment or `config`, as obstore documents. A URI from a record is opened
only if it lies within this store, so records can't point it at other hosts or files. One that ends in the name of its
own content is looked for here, whatever it begins with: a store that was copied or moved still has what records name.

What only has to live for a while lies under `replays/` instead, by the same rule, where nothing else is: it can be
swept by its age.

Not here: who may read, which bytes may be deleted, sweeping `incoming/`, and fsync: a `file://` artifact survives the
crash of every process, but not certainly a power cut.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast

import msgspec
import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from shared.errors import ArtifactNotFound, DigestMismatch, InvalidInput, StoreUnavailable, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from obstore import AsyncWritableFile
    from obstore.store import ObjectStore, S3Config

PART_BYTES: Final = 5 * 1024 * 1024
"""Written and read at a time; the least that S3 takes as a part."""
MAX_PARTS_IN_FLIGHT: Final = 2
HASH_INLINE_BYTES: Final = 1024 * 1024
"""SHA-256 does at least 200 MB/s, so this much holds the event loop for at most 5 ms; more goes to a thread."""
REQUEST_TIMEOUT: Final = timedelta(seconds=30)
RETRY_TIMEOUT: Final = timedelta(seconds=60)
MAX_RETRIES: Final = 3

Content = bytes | memoryview
Area = Literal["sha256", "replays"]
"""Where content lies under its digest: for good, or until it is swept."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEY: Final = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*){0,31}")
"""Keys within the store: no empty, hidden or `..` segment, nothing percent-encoded, no query."""


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """Where bytes lie and which bytes they are: the claim check that records carry instead of them."""

    uri: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    byte_size: Annotated[int, msgspec.Meta(ge=0)]


class ArtifactStore:
    """One store, named by its URL; `config` goes to obstore for the object stores that need it.

    Raises:
        StoreUnavailable: the URL can't be opened; the message names it.
    """

    def __init__(self, url: str, *, config: Mapping[str, str] | None = None) -> None:
        base = url.rstrip("/")
        self._base = f"{base}//" if base.endswith(":") else base  # memory:// and file:/// are all slashes
        self._store = open_store(url, config)

    async def put_stream(
        self,
        chunks: AsyncIterator[Content],
        *,
        limit_bytes: int,
        expected_sha256: str | None = None,
        area: Area = "sha256",
    ) -> Artifact:
        """Store what the iterator yields, holding about two parts of `PART_BYTES` in memory.

        Raises:
            TooLarge: more than `limit_bytes` came; the rest is not read.
            DigestMismatch: the content's digest is not `expected_sha256`.
            StoreUnavailable: the store failed. Whatever `chunks` raises passes through. Nothing is stored then.
        """
        incoming = f"incoming/{uuid.uuid4().hex}"
        writer = obstore.open_writer_async(
            self._store, incoming, buffer_size=PART_BYTES, max_concurrency=MAX_PARTS_IN_FLIGHT
        )
        try:
            sha256, byte_size = await _receive(writer, incoming, chunks, limit_bytes)
            _keep_promise(sha256, expected_sha256)
            key = _content_key(sha256, area)
            # Also over an object that is there already: the same bytes, or damaged ones, which this repairs.
            with store_errors(incoming):
                await obstore.rename_async(self._store, incoming, key)
        except BaseException:
            await self._discard(writer, incoming)
            raise
        return Artifact(uri=f"{self._base}/{key}", sha256=sha256, byte_size=byte_size)

    async def get_bytes(self, artifact: Artifact) -> bytes:
        """The whole content, for a moment twice `artifact.byte_size` bytes of memory: look at that first.

        Raises:
            InvalidInput: the URI is not within this store.
            ArtifactNotFound: nothing is there.
            DigestMismatch: other bytes are there.
            StoreUnavailable: the store failed.
        """
        return bytes(await self.get_view(artifact))

    async def get_view(self, artifact: Artifact) -> memoryview:
        """The whole content, read-only, in `artifact.byte_size` bytes of memory and a piece or two: look at that first.

        Raises:
            The errors of `get_bytes`.
        """
        content = memoryview(b"")
        at = 0
        async for piece in self.stream(artifact):
            if not at:  # now it is known that there is as much
                content = memoryview(bytearray(artifact.byte_size))
            content[at : at + len(piece)] = piece
            at += len(piece)
        return content.toreadonly()

    async def get_as_it_is(self, artifact: Artifact, *, limit_bytes: int) -> bytes:
        """What lies under the artifact's name, whatever it is: for who wants to see what changed bytes do.

        Raises:
            InvalidInput, ArtifactNotFound, StoreUnavailable: as in `get_bytes`.
            TooLarge: it is above the limit.
        """
        key = self._key(artifact)
        with store_errors(artifact.uri):
            if (await obstore.head_async(self._store, key))["size"] > limit_bytes:
                raise TooLarge(f"{artifact.uri} is above the limit of {limit_bytes} bytes")
            found = await obstore.get_async(self._store, key)
            return bytes(await found.bytes_async())

    async def stream(self, artifact: Artifact) -> AsyncIterator[memoryview]:
        """The content in pieces of `PART_BYTES`; trust none of it before the iteration has ended.

        Each piece is a range of its own: a third of the time of obstore's stream, which reads files by 8 KiB.

        Raises:
            The errors of `get_bytes`, `DigestMismatch` after the last piece.
        """
        key = await self._find(artifact)
        digest, byte_size = hashlib.sha256(), 0
        for start in range(0, artifact.byte_size, PART_BYTES):
            end = min(start + PART_BYTES, artifact.byte_size)
            with store_errors(artifact.uri):
                piece = memoryview(await obstore.get_range_async(self._store, key, start=start, end=end))
            byte_size += len(piece)
            await _update(digest, piece)
            yield piece
        _compare(artifact, digest.hexdigest(), byte_size)

    async def named(self, sha256: str) -> Artifact:
        """What lies here under a digest; its content is not read.

        Raises:
            InvalidInput: that is no digest.
            ArtifactNotFound: nothing is there.
            StoreUnavailable: the store failed.
        """
        if not _SHA256.fullmatch(sha256):
            raise InvalidInput(f"{sha256[:80]!r} is not a SHA-256 in lowercase hex")
        key = _content_key(sha256)
        uri = f"{self._base}/{key}"
        with store_errors(uri):
            meta = await obstore.head_async(self._store, key)
        return Artifact(uri=uri, sha256=sha256, byte_size=meta["size"])

    async def exists(self, artifact: Artifact) -> bool:
        """Whether an object of the artifact's size is there. Its content is not read.

        Raises:
            InvalidInput, StoreUnavailable: as in `get_bytes`.
        """
        try:
            await self._find(artifact)
        except (ArtifactNotFound, DigestMismatch):
            return False
        return True

    async def check_there(self, artifact: Artifact) -> None:
        """Look whether an object of the artifact's size is there; its content is not read.

        Raises:
            InvalidInput, ArtifactNotFound, StoreUnavailable: as in `get_bytes`.
            DigestMismatch: its size is another.
        """
        await self._find(artifact)

    def check_within(self, artifact: Artifact) -> None:
        """Look only at where it says to lie.

        Raises:
            InvalidInput: that is not within this store.
        """
        self._key(artifact)

    async def delete(self, artifact: Artifact, *, older_than_s: float) -> bool:
        """Delete an object that has not been written for so long, by the store's clock and ours; whether it was.

        Raises:
            InvalidInput, ArtifactNotFound, StoreUnavailable: as in `get_bytes`.
        """
        key = self._key(artifact)
        with store_errors(artifact.uri):
            meta = await obstore.head_async(self._store, key)
            if (datetime.now(UTC) - meta["last_modified"]).total_seconds() < older_than_s:
                return False
            await obstore.delete_async(self._store, key)
        return True

    async def _discard(self, writer: AsyncWritableFile, key: str) -> None:
        """Remove what was written to an `incoming/` key.

        The writer is closed first, since the parts of an open upload can't be deleted. Failures are dropped: the
        caller is to see the first one, and a key left behind harms nobody.
        """
        with suppress(BaseError, OSError):
            if not await writer.closed():
                await writer.close()
        with suppress(BaseError, OSError):
            await obstore.delete_async(self._store, key)

    async def _find(self, artifact: Artifact) -> str:
        """The key of the artifact's object, which is there and has the right size."""
        key = self._key(artifact)
        with store_errors(artifact.uri):
            meta = await obstore.head_async(self._store, key)
        if meta["size"] != artifact.byte_size:
            raise DigestMismatch(f"{artifact.uri} has {meta['size']} bytes, not {artifact.byte_size}")
        return key

    def _key(self, artifact: Artifact) -> str:
        """The key of the artifact within this store."""
        key, by_content = artifact.uri.removeprefix(f"{self._base}/"), _content_key(artifact.sha256)
        if key != artifact.uri and _KEY.fullmatch(key):
            return key
        if artifact.uri.endswith(f"/{by_content}"):  # of the store that this one was copied from
            return by_content
        raise InvalidInput(f"{artifact.uri!r} is not within the configured artifact store")


def _content_key(sha256: str, area: Area = "sha256") -> str:
    return f"{area}/{sha256[:2]}/{sha256[2:]}"


async def _receive(
    writer: AsyncWritableFile, key: str, chunks: AsyncIterator[Content], limit_bytes: int
) -> tuple[str, int]:
    """Write the chunks to `key`; their digest and size."""
    digest, byte_size = hashlib.sha256(), 0
    async for chunk in chunks:
        byte_size += len(chunk)
        if byte_size > limit_bytes:
            raise TooLarge(f"the content is above the limit of {limit_bytes} bytes")
        await _update(digest, chunk)
        with store_errors(key):
            await writer.write(chunk)
    with store_errors(key):
        await writer.close()
    return digest.hexdigest(), byte_size


def open_store(url: str, config: Mapping[str, str] | None = None) -> ObjectStore:
    """The obstore behind a URL, with its waits bounded, for objects that have names of their own (the archive).

    Raises:
        StoreUnavailable: the URL can't be opened; the message names it.
    """
    try:
        if url.startswith("file:"):
            return from_url(url, mkdir=True)
        if url.startswith("memory:"):
            return from_url(url)
        return from_url(
            url,
            config=cast("S3Config", dict(config or {})),  # or another store's: the URL decides
            client_options={"timeout": REQUEST_TIMEOUT},
            retry_config={"max_retries": MAX_RETRIES, "retry_timeout": RETRY_TIMEOUT},
        )
    except (BaseError, OSError, ValueError) as err:
        raise StoreUnavailable(f"can't open the artifact store {url!r}: {_first_line(err)}") from err


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn what obstore raises into our errors; `what` is the key or URI that they are about."""
    try:
        yield
    except FileNotFoundError as err:
        raise ArtifactNotFound(f"no artifact at {what}") from err
    except (BaseError, OSError) as err:
        raise StoreUnavailable(f"artifact store, {what}: {_first_line(err)}") from err


def _first_line(err: Exception) -> str:
    """The line that says what happened; obstore prints its whole Rust error below it."""
    return str(err).partition("\n")[0]


def _keep_promise(sha256: str, expected_sha256: str | None) -> None:
    if expected_sha256 not in {None, sha256}:
        raise DigestMismatch(f"the content has SHA-256 {sha256}, not {expected_sha256}")


async def _update(digest: hashlib._Hash, content: Content) -> None:
    """Hash, on the event loop only what takes no time there."""
    if len(content) > HASH_INLINE_BYTES:
        await asyncio.to_thread(digest.update, content)
    else:
        digest.update(content)


def _compare(artifact: Artifact, sha256: str, byte_size: int) -> None:
    if (sha256, byte_size) != (artifact.sha256, artifact.byte_size):
        found = f"{byte_size} bytes with SHA-256 {sha256}"
        raise DigestMismatch(f"{artifact.uri} is {found}, not {artifact.byte_size} with {artifact.sha256}")
