"""A job's directory: what is fetched into it from the store, and what the child made there, on its way to the store."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from services.optimizer.rejections import Rejection
from shared.artifacts import PART_BYTES
from shared.errors import ArtifactNotFound, DigestMismatch, InvalidInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from services.optimizer.settings import OptimizerSettings
    from shared.artifacts import Artifact, ArtifactStore


class Workspace:
    """One job's directory, there for as long as the context."""

    def __init__(self, directory: Path, store: ArtifactStore, limit_bytes: int) -> None:
        self.directory = directory
        self._store = store
        self._limit_bytes = limit_bytes

    async def fetch(self, artifact: Artifact, name: str, limit_bytes: int | None = None) -> None:
        """What lies in the store, as a file; one that is there already stays.

        Raises:
            Rejection: it is too large, or not there.
        """
        limit_bytes = limit_bytes or self._limit_bytes
        if artifact.byte_size > limit_bytes:
            found = f"The file has {artifact.byte_size} bytes, more than the {limit_bytes} that are allowed"
            raise Rejection("model_too_large", found)
        path = self.directory / name
        if path.exists():
            return
        try:
            with path.open("xb") as file:
                async for chunk in self._store.stream(artifact):
                    await asyncio.to_thread(file.write, chunk)
        except (ArtifactNotFound, DigestMismatch) as err:
            raise Rejection(err.code, err.message) from err
        except InvalidInput as err:
            raise Rejection("invalid_artifact", err.message) from err

    async def keep(self, name: str) -> Artifact:
        """A file that the child made, in the store.

        Raises:
            Rejection: the file is none that a child of ours makes.
        """
        with _opened(self.directory / name) as file:
            return await self._store.put_stream(_chunks(file), limit_bytes=2 * self._limit_bytes)


@contextmanager
def workspace(settings: OptimizerSettings, store: ArtifactStore) -> Iterator[Workspace]:
    """A fresh directory, removed at the end."""
    with TemporaryDirectory(dir=settings.jobs_dir, prefix=_prefix(settings)) as directory:
        yield Workspace(Path(directory), store, settings.max_model_bytes)


def sweep(settings: OptimizerSettings) -> None:
    """Make the jobs' directory, and remove what an earlier run of this instance left there when it was killed."""
    settings.jobs_dir.mkdir(parents=True, exist_ok=True)
    for path in settings.jobs_dir.glob(f"{_prefix(settings)}*"):
        rmtree(path, ignore_errors=True)  # what can't be removed is in nobody's way


def _prefix(settings: OptimizerSettings) -> str:
    """The names of this instance's job directories. `~` is in no instance's name, so none is another's beginning."""
    return f"aiaas-job-{settings.instance}~"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file that the child wrote: a plain one of its own, not a link or a device that leads elsewhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise Rejection("vet_crashed", f"The file of {path.stem} is missing") from err
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise Rejection("vet_crashed", f"The file of {path.stem} is not a plain file")
        yield file


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, PART_BYTES):
        yield chunk
