"""Verifying one archived segment: its files, its part of the chain, its outcomes, and what these are about."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.audit import archive_reader
from services.audit.archive_source import request_of, result_of
from services.audit.chain import Chain
from services.audit.judge import judged, read
from services.audit.records import RecordedRequest
from services.audit.results import digest_is, digest_of
from shared.errors import AiaasError, ArtifactNotFound, Conflict, StoreUnavailable
from shared.outcomes import Watermarks
from shared.results import Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.audit.layout import File, Manifest
    from services.audit.store import ArchiveStore
    from services.audit.tables import Row
    from services.audit.verify.report import Report
    from shared.artifacts import ArtifactStore
    from shared.outcome_events import Receipt
    from shared.topics import Topics


@dataclass
class Walk:
    """Where the verification of a partition stands."""

    chain: Chain = field(default_factory=Chain)
    marks: Watermarks = field(default_factory=Watermarks)
    next: int | None = None
    previous: str | None = None
    heads: dict[int, str] = field(default_factory=dict)
    """The head after each segment, by the offset behind it."""


class SegmentVerifier:
    """Verifies segments of a log into a report. `outcomes` says whether the log is the outcome log."""

    def __init__(
        self, store: ArchiveStore, artifacts: ArtifactStore, topics: Topics, report: Report, *, outcomes: bool
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._topics = topics
        self._report = report
        self._outcomes = outcomes

    async def verify(self, manifest: Manifest, walk: Walk) -> None:
        """Hold a segment against its manifest and against the segments before it.

        Raises:
            StoreUnavailable: the store failed.
        """
        where = f"{manifest.log} p{manifest.partition} [{manifest.first}, {manifest.next})"
        rows: list[Row] = []
        for file in manifest.files:
            if file.kind == "records":
                rows += await self._rows(file)
        accepted = self._records(manifest, rows, walk, where)
        if self._outcomes:
            await self._exchanges(manifest, accepted, where)

    async def _rows(self, file: File) -> list[Row]:
        """The rows of a file; none if it is broken."""
        try:
            rows = list(await archive_reader.rows(self._store, file))
        except StoreUnavailable:
            raise
        except ArtifactNotFound:
            self._report.expect(False, "file", file.key, "it is missing")
            return []
        except AiaasError as err:
            self._report.expect(False, "file", file.key, err.message)
            return []
        self._report.counts["files"] += 1
        self._report.expect(
            len(rows) == file.rows, "file", file.key, f"it has {len(rows)} rows, its manifest says {file.rows}"
        )
        return rows

    def _records(self, manifest: Manifest, rows: list[Row], walk: Walk, where: str) -> dict[int, Receipt]:
        """The chain and the verdicts; returns accepted receipts by offset."""
        report = self._report
        accepted: dict[int, Receipt] = {}
        gaps = {(gap.topic, gap.partition, gap.next): gap for gap in manifest.gaps}
        position = manifest.first - 1
        for row in rows:
            at = f"{manifest.log} p{manifest.partition} offset {row['offset']}"
            in_order = position < row["offset"] < manifest.next
            report.expect(in_order, "outcome", at, f"it comes after offset {position}")
            position = row["offset"]
            walk.chain.add(row["key"], row["value"])
            report.counts["records"] += 1
            if self._outcomes:
                receipt = self._verdict(row, walk, at, gaps)
                if receipt is not None:
                    accepted[row["offset"]] = receipt
        head, heads = walk.chain.head.hex(), walk.chain.so_far
        walk.chain.cut()
        report.expect(head == manifest.head, "chain", where, f"its records give the head {head}, not {manifest.head}")
        report.expect(heads == manifest.heads_sha256, "chain", where, "its records give other heads than its manifest")
        if self._outcomes:
            marks = {f"{topic}/{number}": highest for (topic, number), highest in walk.marks.highest.items()}
            report.expect(marks == manifest.marks, "manifest", where, "its watermarks are not those of its outcomes")
        walk.heads[manifest.next] = head
        walk.chain.head = bytes.fromhex(manifest.head)  # so that what is broken here is not told of all that follows
        walk.marks = Watermarks(archive_reader.marks_of(manifest))
        return accepted

    def _verdict(self, row: Row, walk: Walk, at: str, gaps: Mapping[tuple[str, int, int], object]) -> Receipt | None:
        """The receipt of a record that counts."""
        receipt = read(row["key"], row["value"], self._topics)
        self._report.counts[f"outcomes_{row['verdict']}"] += 1
        if row["verdict"] == "forged":  # whether a request was there is known only to who was there
            self._report.expect(receipt is not None, "outcome", at, "it is called forged, and is malformed")
            return None
        found = judged(receipt, walk.marks, None)
        self._report.expect(
            found.verdict == row["verdict"], "outcome", at, f"it is called {row['verdict']}, and is {found.verdict}"
        )
        if found.verdict != "accepted" or receipt is None:
            return None
        request = receipt.request
        if found.above is not None and found.above + 1 < request.offset:
            known = gaps.get((request.topic, request.partition, request.offset))
            self._report.expect(
                known is not None,
                "completeness",
                f"{request.topic}/{request.partition} offsets {found.above + 1} to {request.offset - 1}",
                "the requests have no outcome",
            )
        return receipt

    async def _exchanges(self, manifest: Manifest, accepted: dict[int, Receipt], where: str) -> None:
        report, seen = self._report, set[int]()
        for gap in manifest.gaps:
            place = f"{gap.topic}/{gap.partition} offsets {gap.first} to {gap.next - 1}"
            report.expect(not gap.records, "completeness", place, f"{gap.records} request(s) have no outcome")
            if gap.records is None:
                report.note(f"{place}: Kafka had expired what was there when it was archived")
        for file in manifest.files:
            if file.kind != "exchanges":
                continue
            if file.expired:
                report.counts["expired"] += file.rows
                mine = [offset for offset, receipt in accepted.items() if receipt.model_name == file.model]
                seen.update(mine)
                continue
            for row in await self._rows(file):
                receipt = accepted.get(row["outcome_offset"])
                at = f"{row['request_topic']}/{row['request_partition']} offset {row['request_offset']}"
                new = receipt is not None and row["outcome_offset"] not in seen
                if report.expect(new, "outcome", at, "a request in the archive has no outcome, or is there twice"):
                    await self._exchange(manifest, row, accepted[row["outcome_offset"]], at)
                seen.add(row["outcome_offset"])
        missing = sorted(accepted.keys() - seen)
        report.expect(not missing, "request", where, f"nothing is kept of the outcomes at {missing[:5]}")

    async def _exchange(self, manifest: Manifest, row: Row, receipt: Receipt, at: str) -> None:
        """A request and its result, held against the receipt."""
        report, request = self._report, receipt.request
        place = (row["request_topic"], row["request_partition"], row["request_offset"])
        report.expect(
            place == (request.topic, request.partition, request.offset), "request", at, "its receipt is another's"
        )
        try:
            recorded = request_of(row, receipt, manifest.cluster_id)
            result = result_of(row)
            if isinstance(recorded, RecordedRequest):
                report.counts["requests"] += 1
                same = hashlib.sha256(recorded.value or b"").hexdigest() == receipt.input_sha256
                report.expect(same, "request", at, "its bytes are not those of the receipt's input_sha256")
            else:
                self._gone(manifest, "request", recorded, at)
            if isinstance(result, Result):
                report.counts["results"] += 1
                report.expect(
                    await self._same(result, receipt), "result", at, "it is not that of the receipt's output_sha256"
                )
            else:
                self._gone(manifest, "result", result, at)
        except (StoreUnavailable, Conflict):
            raise
        except AiaasError as err:
            report.expect(False, "result", at, err.message)

    async def _same(self, result: Result, receipt: Receipt) -> bool:
        known = digest_is(result, receipt)
        if known is None or any(tensor.claimed for tensor in result.outputs):
            known = await digest_of(result, self._artifacts) == receipt.output_sha256
        return known and result.status == receipt.status

    def _gone(self, manifest: Manifest, what: str, why: str, at: str) -> None:
        self._report.counts[f"{what}s_{why}"] += 1
        if why == "erased":
            self._report.expect(
                manifest.revision > 0, what, at, "it is called erased, and no revision of its manifest says so"
            )
        self._report.expect(why in {"expired", "erased", "changed"}, what, at, f"it is {why}")
