"""The archive's map: which object lies where, and what a manifest says. docs/audit.md shows it to auditors.

    audit/{cluster}/{topic}/{life}/                         one log: `outcomes` or `models` of one cluster
        p{partition}/manifests/{first}.r{revision}.json     a segment: records [first, next), its files, the chain
        p{partition}/records/{first}-{next}-{sha}.parquet   the raw records of the segment
        p{partition}/checkpoints/{offset}.json              signed (`services.audit.signing`)
        exchanges/model={model}/day={day}/p{partition}-{first}-{next}-{sha}.parquet   requests and results

Offsets have 20 digits, so that names sort as numbers. A log has another *life* when the broker's data was lost and its
offsets began again. A segment counts when its manifest is there; a manifest is never changed. Erasure and retention
write the next revision, which names the one before; the highest revision counts. `{sha}` is the beginning of the
content's digest: who writes a name again writes the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from shared.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT: Final = "audit"
Kind = Literal["records", "exchanges"]


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A Parquet file of a segment."""

    kind: Kind
    key: str
    schema: str
    sha256: str
    byte_size: int
    rows: int
    model: str | None = None
    day: str | None = None
    expired: bool = False
    """Retention has removed it; what it was stays said here."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Requests [first, next) of a partition that were passed over: no outcome of them came before a later one's."""

    topic: str
    partition: int
    first: int
    next: int
    records: int | None
    """How many records Kafka had there, 0 where offsets never were records; None if it had expired them."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A segment of one partition of a log."""

    schema: int = 1
    cluster_id: str
    topic: str
    life: int
    partition: int
    first: int
    next: int
    first_ms: int
    """The least and the greatest time of the records, in ms since the epoch."""
    last_ms: int
    previous: str | None
    """SHA-256 of the (first revision of the) manifest before; null for the log's first."""
    head_before: str
    head: str
    heads_sha256: str
    marks: dict[str, int]
    """The highest accepted request offset by `topic/partition`, after the segment."""
    gaps: tuple[Gap, ...] = ()
    files: tuple[File, ...]
    revision: int = 0
    supersedes: str | None = None
    """SHA-256 of the revision before."""
    reason: str = ""
    """Why there is a revision: `erased: …` or `retention: …`."""
    written_by: str
    written_at: str

    def encode(self) -> bytes:
        """As it is stored."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @property
    def log(self) -> Log:
        """The log that it is of."""
        return Log(self.cluster_id, self.topic, self.life)


def decode_manifest(data: bytes) -> Manifest:
    """The inverse of `Manifest.encode`.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as err:
        raise InvalidInput(f"not a manifest: {err}") from err


class Log(msgspec.Struct, frozen=True, order=True):
    """A log in the archive."""

    cluster_id: str
    topic: str
    life: int

    @property
    def root(self) -> str:
        """Where all of it lies."""
        return f"{ROOT}/{self.cluster_id}/{self.topic}/{self.life}"

    def __str__(self) -> str:
        return f"{self.cluster_id}/{self.topic}/{self.life}"

    def manifest(self, partition: int, first: int, revision: int = 0) -> str:
        """The key of a manifest."""
        return f"{self.manifests(partition)}{first:020d}.r{revision}.json"

    def manifests(self, partition: int) -> str:
        """The prefix of a partition's manifests."""
        return f"{self.root}/p{partition}/manifests/"

    def records(self, partition: int, first: int, end: int, content: bytes) -> str:
        """The key of a file of raw records."""
        return f"{self.root}/p{partition}/records/{first:020d}-{end:020d}-{_short(content)}.parquet"

    def exchanges(self, model: str, day: str, partition: int, first: int, end: int, content: bytes) -> str:
        """The key of a file of requests and results."""
        name = f"p{partition}-{first:020d}-{end:020d}-{_short(content)}.parquet"
        return f"{self.root}/exchanges/model={model}/day={day}/{name}"

    def checkpoint(self, partition: int, offset: int) -> str:
        """The key of a checkpoint."""
        return f"{self.checkpoints(partition)}{offset:020d}.json"

    def checkpoints(self, partition: int) -> str:
        """The prefix of a partition's checkpoints."""
        return f"{self.root}/p{partition}/checkpoints/"


def cluster_name(cluster_id: str | None) -> str:
    """A cluster's id as a part of keys."""
    return re.sub(r"[^A-Za-z0-9_=-]", "_", cluster_id or "") or "unknown"


_MANIFEST: Final = re.compile(
    rf"{ROOT}/(?P<cluster>[^/]+)/(?P<topic>[^/]+)/(?P<life>\d+)/p(?P<partition>\d+)/manifests/"
    r"(?P<first>\d{20})\.r(?P<revision>\d+)\.json"
)


_FILE: Final = re.compile(
    rf"{ROOT}/(?P<cluster>[^/]+)/(?P<topic>[^/]+)/(?P<life>\d+)/"
    r"(?:p(?P<records>\d+)/records/|exchanges/[^/]+/[^/]+/p(?P<exchanges>\d+)-)"
    r"(?P<first>\d{20})-\d{20}-[0-9a-f]{16}\.parquet"
)


class Place(msgspec.Struct, frozen=True, order=True):
    """What the key of a manifest says."""

    log: Log
    partition: int
    first: int
    revision: int


def places(keys: Iterable[str]) -> list[Place]:
    """The manifests among keys, in order."""
    matches = (_MANIFEST.fullmatch(key) for key in keys)
    return sorted(
        Place(Log(m["cluster"], m["topic"], int(m["life"])), int(m["partition"]), int(m["first"]), int(m["revision"]))
        for m in matches
        if m is not None
    )


def place_of(key: str) -> Place | None:
    """The (first revision of the) manifest of the segment that a file is of; None if that is no file's key."""
    m = _FILE.fullmatch(key)
    if m is None:
        return None
    partition = int(m["records"] or m["exchanges"])
    return Place(Log(m["cluster"], m["topic"], int(m["life"])), partition, int(m["first"]), 0)


def newest(found: Iterable[Place]) -> list[Place]:
    """Of each segment the highest revision, in order."""
    by_segment = {(place.log, place.partition, place.first): place for place in sorted(found)}
    return list(by_segment.values())


def sha256(content: bytes) -> str:
    """A digest as it stands in manifests."""
    return hashlib.sha256(content).hexdigest()


def _short(content: bytes) -> str:
    return sha256(content)[:16]
