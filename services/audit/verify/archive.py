"""Verifying the archive: every log, every partition, segment by segment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.audit import archive_reader, layout
from services.audit.layout import Manifest, decode_manifest, places
from services.audit.signing import decode_checkpoint
from services.audit.verify.segment import SegmentVerifier, Walk
from shared import topics
from shared.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.audit.layout import Log, Place
    from services.audit.signing import Checkpoint, Statement
    from services.audit.store import ArchiveStore
    from services.audit.verify.report import Report
    from shared.artifacts import ArtifactStore
    from shared.topics import Topics

Walks = dict[tuple["Log", int], Walk]


class ArchiveVerifier:
    """Verifies an archive into a report. Checkpoints count if one of `keys` (hex) signed them; None: any key's do."""

    def __init__(
        self,
        store: ArchiveStore,
        artifacts: ArtifactStore,
        names: Topics,
        report: Report,
        keys: frozenset[str] | None,
        known: Sequence[Checkpoint] = (),
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._names = names
        self._report = report
        self._keys = keys
        self._known = [checkpoint for checkpoint in known if self._signed(checkpoint, "a checkpoint that was given")]

    async def verify(self) -> Walks:
        """Verify all; returns where each partition ends.

        Raises:
            StoreUnavailable: the store failed.
        """
        walks: Walks = {}
        for topic in (topics.OUTCOMES, topics.MODELS):
            verifier = SegmentVerifier(
                self._store, self._artifacts, self._names, self._report, outcomes=topic is topics.OUTCOMES
            )
            for log in await archive_reader.logs_of(self._store, self._names.name(topic)):
                for partition in await archive_reader.partitions_of(self._store, log):
                    walks[log, partition] = await self._partition(log, partition, verifier)
        self._hold_known(walks)
        if not walks:
            self._report.note("nothing is archived")
        return walks

    async def _partition(self, log: Log, partition: int, verifier: SegmentVerifier) -> Walk:
        walk, found = Walk(), places(await self._store.keys(log.manifests(partition)))
        for first in sorted({place.first for place in found}):
            revisions = [place for place in found if place.first == first]
            manifest = await self._manifest(revisions, walk)
            if manifest is None:
                continue
            await verifier.verify(manifest, walk)
            walk.next = manifest.next
            self._report.counts["segments"] += 1
        await self._checkpoints(log, partition, walk)
        return walk

    async def _manifest(self, revisions: list[Place], walk: Walk) -> Manifest | None:
        """The manifest that counts, held against its earlier revisions and the segment before it."""
        report, digest, manifest = self._report, None, None
        first_digest = None
        for number, place in enumerate(revisions):
            key = place.log.manifest(place.partition, place.first, place.revision)
            content = await self._store.get(key)
            try:
                manifest = decode_manifest(content)
            except InvalidInput as err:
                report.expect(False, "manifest", key, err.message)
                return None
            at = (manifest.log, manifest.partition, manifest.first, manifest.revision)
            report.expect(at == (place.log, place.partition, place.first, number), "manifest", key, "it is another's")
            report.expect(manifest.supersedes == digest, "manifest", key, "it does not name the revision before it")
            digest = layout.sha256(content)
            first_digest = first_digest or digest
        if manifest is not None:
            self._follows(manifest, walk)
        walk.previous = first_digest
        return manifest

    def _follows(self, manifest: Manifest, walk: Walk) -> None:
        where = f"{manifest.log} p{manifest.partition} [{manifest.first}, {manifest.next})"
        self._report.expect(manifest.previous == walk.previous, "manifest", where, "the segment before is not there")
        if walk.next is not None and manifest.first != walk.next:
            what = f"records {walk.next} to {manifest.first - 1} are not archived"
            self._report.expect(False, "manifest", where, what)
        self._report.expect(
            manifest.head_before == walk.chain.head.hex(), "chain", where, "it does not begin with the head before it"
        )
        walk.chain.head = bytes.fromhex(manifest.head_before)

    async def _checkpoints(self, log: Log, partition: int, walk: Walk) -> None:
        offsets = set()
        for key in await self._store.keys(log.checkpoints(partition)):
            try:
                checkpoint = decode_checkpoint(await self._store.get(key))
                if not self._signed(checkpoint, key):
                    continue
                statement = checkpoint.read()
            except InvalidInput as err:
                self._report.expect(False, "checkpoint", key, err.message)
                continue
            offsets.add(statement.offset)
            self._report.counts["checkpoints"] += 1
            self._hold(statement, walk, key)
        for offset in sorted(walk.heads.keys() - offsets - {walk.next}):
            self._report.expect(False, "checkpoint", f"{log} p{partition} offset {offset}", "it is missing")
        if walk.next is not None and walk.next not in offsets:
            self._report.note(f"{log} p{partition}: the last segment, up to {walk.next}, has no checkpoint yet")

    def _hold(self, statement: Statement, walk: Walk, where: str) -> None:
        head = walk.heads.get(statement.offset)
        if head is None and statement.offset > (walk.next or 0):
            why = f"it is of offset {statement.offset}, and the archive ends at {walk.next}: the tail is missing"
        else:
            why = f"the log's head at {statement.offset} is {head}, it says {statement.head}"
        self._report.expect(head == statement.head, "checkpoint", where, why)

    def _signed(self, checkpoint: Checkpoint, where: str) -> bool:
        keys = self._keys
        if keys is None:
            keys = frozenset([checkpoint.public_key])
            self._report.note(f"checkpoints are trusted by the key that is with them, {checkpoint.public_key}")
        good = checkpoint.signed_by(keys)
        return self._report.expect(good, "checkpoint", where, "it is not signed by a key that is trusted")

    def _hold_known(self, walks: Walks) -> None:
        """Checkpoints that the auditor has from elsewhere: an archive that was cut off is not to look whole."""
        for checkpoint in self._known:
            statement = checkpoint.read()
            log = layout.Log(statement.cluster_id, statement.topic, statement.life)
            where = f"{log} p{statement.partition} offset {statement.offset}, a checkpoint that was given"
            self._hold(statement, walks.get((log, statement.partition), Walk()), where)
