"""Erasing a person's requests from the archive: requests and results go, receipts and digests stay.

Each file that holds some is written again without them, the next revision of its manifest says so and names the one
before, and then the old file is deleted. Objects in the artifact store that only erased requests named are deleted as
well; those of models are not touched. Verify then counts these requests as erased. Not here: what Kafka and Redis still
keep, which their retention and TTL end; and requests that were not archived yet: ask again when they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.audit import archive_reader, tables
from services.audit.layout import ROOT, newest, places
from services.audit.revisions import revise
from services.audit.writer import described
from shared import logs
from shared.errors import InvalidInput

if TYPE_CHECKING:
    from services.audit.layout import File, Manifest
    from services.audit.store import ArchiveStore
    from services.audit.tables import Row

_EMPTY = dict.fromkeys(("request_key", "request_headers", "request_value", "result", "request_timestamp_ms"))


@dataclass(frozen=True)
class Erasure:
    """Whose requests go: a model's by id, or a tenant's."""

    model: str
    request_ids: frozenset[str] = frozenset()
    tenant: str | None = None

    def __post_init__(self) -> None:
        if not self.request_ids and self.tenant is None:
            raise InvalidInput("whose requests are to be erased? Name ids, or a tenant")

    def takes(self, row: Row) -> bool:
        """Whether a row is one of them, and not erased yet."""
        mine = row["request_id"] in self.request_ids or (self.tenant is not None and row["tenant"] == self.tenant)
        return mine and (row["request_state"] != "erased" or row["result_state"] != "erased")


async def erase(store: ArchiveStore, erasure: Erasure) -> int:
    """Erase what is archived, in every log; returns how many requests went. The same call again finds none.

    Raises:
        Conflict: somebody revised a manifest at the same time: call again.
        StoreUnavailable: the store failed; some may be done: call again.
        ArtifactNotFound, DigestMismatch, InvalidInput: the archive is damaged: see `aiaas audit verify`.
    """
    erased: list[Row] = []
    named: set[str] = set()
    for place in newest(places(await store.keys(f"{ROOT}/"))):
        manifest = await archive_reader.manifest_at(store, place)
        for file in manifest.files:
            if file.kind != "exchanges" or file.expired:
                continue
            rows = list(await archive_reader.rows(store, file))
            mine = [row for row in rows if file.model == erasure.model and erasure.takes(row)]
            if mine:
                manifest = await _without(store, manifest, file, rows, erasure)
                erased += mine
            named |= {digest for row in rows if row not in mine for digest in row["artifacts"] or ()}
    for digest in {digest for row in erased for digest in row["artifacts"] or ()} - named:
        await store.delete(f"sha256/{digest[:2]}/{digest[2:]}")
    logs.get().info("erased", model=erasure.model, requests=len(erased))
    return len(erased)


async def _without(store: ArchiveStore, manifest: Manifest, file: File, rows: list[Row], erasure: Erasure) -> Manifest:
    """The manifest's next revision, in whose file the erasure's rows are empty."""
    kept = [_emptied(row) if erasure.takes(row) else row for row in rows]
    content = tables.encode(tables.EXCHANGES, kept)
    model, day = file.model or "", file.day or ""
    key = manifest.log.exchanges(model, day, manifest.partition, manifest.first, manifest.next, content)
    await store.put(key, content)
    files = tuple(
        described(key, tables.EXCHANGES, content, len(kept), model, day) if each == file else each
        for each in manifest.files
    )
    count = sum(erasure.takes(row) for row in rows)
    revised = await revise(store, manifest, files, f"erased: {count} request(s) of {model}")
    await store.delete(file.key)
    return revised


def _emptied(row: Row) -> Row:
    return {**row, **_EMPTY, "artifacts": [], "request_state": "erased", "result_state": "erased"}
