"""Zip and tar archives from strangers: looked through before a byte of a member is read.

Plain files with relative names, each once; stored or deflated; no more of them, and no more bytes in them, than is
allowed. Sizes are those that the archive says, and a member is never read beyond: one that lies is an error.
Nothing is ever extracted to a path.
"""

from __future__ import annotations

import io
import re
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MAX_MEMBERS: Final = 10_000
_MAX_NAME_CHARS: Final = 300
_MAX_DEPTH: Final = 20
_ENCRYPTED: Final = 0x1
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_ZIP: Final = b"PK\x03\x04"
_CENTRAL: Final = b"PK\x01\x02"
_TORCHS_ROOT: Final = "model"
_USTAR: Final = (257, b"ustar")
_BROKEN: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    NotImplementedError,
    ValueError,
    EOFError,
    OSError,
    RecursionError,
    OverflowError,
    RuntimeError,
    IndexError,
    KeyError,
)
"""What Python's own readers raise on archives made to hurt."""


@dataclass(frozen=True)
class Archive:
    """The members of an archive by name; a directory that holds all of it is left out of the names."""

    sizes: Mapping[str, int]
    _read: Callable[[str], bytes]
    limit_bytes: int = 0
    """What it, and an archive in it, may unpack to."""
    root: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.sizes

    def read(self, name: str) -> bytes:
        """A member's bytes.

        Raises:
            Rejection: it is not there, or is damaged.
        """
        if name not in self.sizes:
            raise Rejection("invalid_bundle", f"The archive has no {name[:100]!r}")
        try:
            content = self._read(self.root + name)
        except _BROKEN as err:
            raise Rejection("unsafe_archive", f"Member {name[:100]!r} of the archive is damaged: {err}") from err
        if len(content) != self.sizes[name]:
            raise Rejection("unsafe_archive", f"Member {name[:100]!r} is not as long as the archive says")
        return content

    def inner(self, name: str) -> Archive:
        """A member that is an archive itself.

        Raises:
            Rejection: as `opened`.
        """
        return opened(self.read(name), self.limit_bytes)

    def named(self, ending: str) -> list[str]:
        """The members whose names end so."""
        return sorted(name for name in self.sizes if name.endswith(ending))


def is_zip(content: bytes) -> bool:
    """Whether it begins as a zip does."""
    return content.startswith(_ZIP)


def is_tar(content: bytes) -> bool:
    """Whether it begins as a tar (POSIX or GNU) does."""
    at, magic = _USTAR
    return content[at : at + len(magic)] == magic


def opened(content: bytes, limit_bytes: int) -> Archive:
    """A zip or a tar with at most `limit_bytes` in it.

    Raises:
        Rejection: it is damaged, or has in it what it may not.
    """
    try:
        return _zip(content, limit_bytes) if is_zip(content) else _tar(content, limit_bytes)
    except _BROKEN as err:
        raise Rejection("unsafe_archive", f"The archive is damaged: {str(err)[:200]}") from err


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A fresh archive as torch reads it, all in one directory: the same bytes of the same members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as fresh:
        for name, content in members.items():
            fresh.writestr(zipfile.ZipInfo(f"{_TORCHS_ROOT}/{name}"), content)
    return buffer.getvalue()


def _zip(content: bytes, limit_bytes: int) -> Archive:
    # Counted before Python's reader makes an object of each.
    if content.count(_CENTRAL) > MAX_MEMBERS:
        raise Rejection("unsafe_archive", f"The archive has more than {MAX_MEMBERS} members")
    archive = zipfile.ZipFile(io.BytesIO(content))
    sizes: dict[str, int] = {}
    packed = 0
    for info in archive.infolist():
        if info.is_dir():
            continue
        kind = info.external_attr >> 16
        if stat.S_IFMT(kind) not in (0, stat.S_IFREG):
            raise _not_plain(info.filename)
        if info.flag_bits & _ENCRYPTED:
            raise Rejection("unsafe_archive", f"Member {info.filename[:100]!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Rejection("unsafe_archive", f"Member {info.filename[:100]!r} is compressed in an unusual way")
        packed += info.compress_size
        _add(sizes, info.filename, info.file_size, limit_bytes)
    if packed > len(content):
        raise Rejection("unsafe_archive", "Members of the archive lie over one another")

    def read(name: str) -> bytes:
        with archive.open(name) as member:
            return member.read(sizes[name] + 1)

    return _archive(sizes, read, limit_bytes)


def _tar(content: bytes, limit_bytes: int) -> Archive:
    archive = tarfile.open(fileobj=io.BytesIO(content), mode="r:")  # noqa: SIM115 - it lives as long as its bytes
    sizes: dict[str, int] = {}
    places: dict[str, int] = {}
    for count, info in enumerate(archive, 1):
        if count > MAX_MEMBERS:
            raise Rejection("unsafe_archive", f"The archive has more than {MAX_MEMBERS} members")
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise _not_plain(info.name)
        name = info.name.removeprefix("./")
        _add(sizes, name, info.size, limit_bytes)
        places[name] = info.offset_data
        if info.offset_data + info.size > len(content):
            raise Rejection("unsafe_archive", "The archive is truncated")
    return _archive(sizes, lambda name: content[places[name] : places[name] + sizes[name]], limit_bytes)


def _add(sizes: dict[str, int], name: str, byte_size: int, limit_bytes: int) -> None:
    parts = name.split("/")
    bad = not name or len(name) > _MAX_NAME_CHARS or len(parts) > _MAX_DEPTH or "\\" in name or not name.isprintable()
    if bad or name.startswith("/") or _DRIVE.match(name) or any(part in ("", ".", "..") for part in parts):
        raise Rejection("unsafe_archive", f"The archive has a member {name[:100]!r}, which is no plain relative name")
    if name in sizes:
        raise Rejection("unsafe_archive", f"Two members of the archive are called {name[:100]!r}")
    sizes[name] = byte_size
    if len(sizes) > MAX_MEMBERS:
        raise Rejection("unsafe_archive", f"The archive has more than {MAX_MEMBERS} members")
    if byte_size < 0 or sum(sizes.values()) > limit_bytes:
        raise Rejection("unsafe_archive", f"The archive unpacks to more than the {limit_bytes} bytes that are allowed")


def _not_plain(name: str) -> Rejection:
    return Rejection("unsafe_archive", f"Member {name[:100]!r} is a link or a device, not a plain file")


def _archive(sizes: Mapping[str, int], read: Callable[[str], bytes], limit_bytes: int) -> Archive:
    root = _root(sizes)
    return Archive({name[len(root) :]: size for name, size in sizes.items()}, read, limit_bytes, root)


def _root(names: Iterable[str]) -> str:
    """The directory that all names begin with, with its slash; empty if there is none."""
    roots = {name.partition("/")[0] if "/" in name else "" for name in names}
    return f"{roots.pop()}/" if len(roots) == 1 and "" not in roots else ""
