"""Writing a bundle from the archive: a model's requests and results in a time, and all that it takes to verify them.

Of each partition of the outcome log in which the model has outcomes in that time, every record from the first segment
to the last goes in, those of other models too: the chain is over all of them. Requests and results are the model's
alone. Records that are not archived yet are not in it. Held in memory is one segment at a time.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from services.audit import archive_reader
from services.audit.archive_source import request_of, result_of
from services.audit.chain import link
from services.audit.judge import read
from services.audit.records import RecordedRequest, Selection
from services.audit.signing import decode_checkpoint
from services.audit.store import ArchiveStore
from shared import topics
from shared.artifacts import ArtifactStore
from shared.codec import rfc3339
from shared.errors import ArtifactNotFound, DigestMismatch, UnknownRequest
from shared.results import Result

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.audit.layout import Log, Manifest
    from services.audit.tables import Row
    from shared.artifacts import Artifact
    from shared.outcome_events import Receipt
    from shared.settings import PlatformSettings
    from shared.tensors import Tensor

FORMAT = "aiaas.export/1"
_HERE = Path(__file__).parent
_COPIED = {"verify_script.py": "verify.py", "README.md": "README.md", "vectors.json": "vectors.json"}


async def export(settings: PlatformSettings, selection: Selection, out: Path) -> dict[str, Any]:
    """Write a bundle to `out`, a directory that is not there yet, or a file that ends in `.zip`; returns its contents.

    Raises:
        UnknownRequest: nothing of the model is archived in that time.
        StoreUnavailable, DigestMismatch, ArtifactNotFound: the archive could not be read.
    """
    if out.suffix == ".zip":
        with tempfile.TemporaryDirectory(prefix="aiaas-export-") as scratch:
            about = await Exporter(settings, selection, Path(scratch)).write()
            _zip(Path(scratch), out)
        return about
    await asyncio.to_thread(out.mkdir, parents=True)
    return await Exporter(settings, selection, out).write()


@dataclass
class _Written:
    """What the bundle's table of contents gets to say."""

    logs: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    selected: list[tuple[str, int, int]] = field(default_factory=list)
    objects: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)


class Exporter:
    """Writes one bundle into a directory."""

    def __init__(self, settings: PlatformSettings, selection: Selection, root: Path) -> None:
        self._names = settings.topics
        self._instance = settings.instance
        self._store = ArchiveStore(settings.artifact_store_url)
        self._artifacts = ArtifactStore(settings.artifact_store_url)
        self._selection = selection
        self._root = root
        self._written = _Written()

    async def write(self) -> dict[str, Any]:
        """Write all files; see `export`."""
        (self._root / "logs").mkdir()
        (self._root / "objects").mkdir()
        await self._outcomes()
        if not self._written.selected:
            raise UnknownRequest(f"nothing of {self._selection.model} is archived in that time")
        await self._models()
        for sha256 in sorted(self._written.objects):
            await self._object(sha256)
        about = {
            "format": FORMAT,
            "model": self._selection.model,
            "exported_at": rfc3339(time.time_ns()),
            "exported_by": self._instance,
            "logs": self._written.logs,
            "gaps": self._written.gaps,
            "absent": self._written.absent,
            "selected": self._written.selected,
        }
        (self._root / "bundle.json").write_text(json.dumps(about, indent=1))
        (self._root / "public-key.txt").write_text("\n".join(sorted(self._written.keys)) + "\n")
        for source, name in _COPIED.items():
            shutil.copyfile(_HERE / source, self._root / name)
        (self._root / "files.json").write_text(json.dumps(_digests(self._root), indent=1))
        return about

    async def _outcomes(self) -> None:
        with (self._root / "exchanges.jsonl").open("w") as exchanges:
            for log in await archive_reader.logs_of(self._store, self._names.name(topics.OUTCOMES)):
                for partition in await archive_reader.partitions_of(self._store, log):
                    manifests = [each async for each in archive_reader.manifests(self._store, log, partition)]
                    wanted = [number for number, manifest in enumerate(manifests) if self._may_have(manifest)]
                    if wanted:
                        some = manifests[wanted[0] : wanted[-1] + 1]
                        before = manifests[wanted[0] - 1].marks if wanted[0] else {}
                        await self._log("outcomes", log, some, before, exchanges)

    async def _models(self) -> None:
        logs = await archive_reader.logs_of(self._store, self._names.name(topics.MODELS))
        if log := await archive_reader.latest(self._store, logs):
            manifests = [each async for each in archive_reader.manifests(self._store, log, 0)]
            await self._log("models", log, manifests, {}, None)

    def _may_have(self, manifest: Manifest) -> bool:
        chosen = self._selection
        return (
            any(file.model == chosen.model for file in manifest.files)
            and (chosen.since_ms is None or manifest.last_ms >= chosen.since_ms)
            and (chosen.until_ms is None or manifest.first_ms < chosen.until_ms)
        )

    async def _log(
        self, kind: str, log: Log, manifests: list[Manifest], marks_before: dict[str, int], exchanges: Any
    ) -> None:
        """One partition of a log, record by record, each with its head."""
        first, last = manifests[0], manifests[-1]
        name = f"logs/{kind}-{log.cluster_id}-{log.life}-{first.partition}.jsonl"
        head = bytes.fromhex(first.head_before)
        with (self._root / name).open("w") as lines:
            for manifest in manifests:
                rows = await self._rows(manifest, "records")
                for row in rows:
                    head = link(head, row["key"], row["value"])
                    _line(lines, _record(row, head))
                self._written.gaps += [msgspec.to_builtins(gap) for gap in manifest.gaps]
                await self._checkpoint(log, manifest)
                if exchanges is not None:
                    await self._exchanges(manifest, rows, exchanges)
        self._written.logs.append(
            {
                "kind": kind,
                "cluster_id": log.cluster_id,
                "topic": log.topic,
                "life": log.life,
                "partition": first.partition,
                "file": name,
                "first": first.first,
                "next": last.next,
                "begins": first.previous is None,
                "head_before": first.head_before,
                "marks_before": marks_before,
            }
        )

    async def _rows(self, manifest: Manifest, kind: str) -> list[Row]:
        return [
            row
            for file in manifest.files
            if file.kind == kind and not file.expired and (kind == "records" or file.model == self._selection.model)
            for row in await archive_reader.rows(self._store, file)
        ]

    async def _checkpoint(self, log: Log, manifest: Manifest) -> None:
        try:
            content = await self._store.get(log.checkpoint(manifest.partition, manifest.next))
        except ArtifactNotFound:
            return  # of the last segment, which may be without for a moment
        self._written.keys.add(decode_checkpoint(content).public_key)
        with (self._root / "checkpoints.jsonl").open("a") as lines:
            lines.write(content.decode().strip() + "\n")

    async def _exchanges(self, manifest: Manifest, rows: list[Row], lines: Any) -> None:
        receipts = {row["offset"]: read(row["key"], row["value"], self._names) for row in rows}
        for row in await self._rows(manifest, "exchanges"):
            receipt = receipts.get(row["outcome_offset"])
            if receipt is None or not self._selection.wants(receipt, row["timestamp_ms"]):
                continue
            _line(lines, self._exchange(row, receipt, manifest.cluster_id))
            at = receipt.request
            self._written.selected.append((at.topic, at.partition, at.offset))
            self._written.objects |= {*row["artifacts"], *filter(None, [receipt.artifact_sha256])}

    def _exchange(self, row: Row, receipt: Receipt, cluster_id: str) -> dict[str, Any]:
        """A request and its result."""
        request, result = request_of(row, receipt, cluster_id), result_of(row)
        there = request if isinstance(request, RecordedRequest) else None
        answer = result if isinstance(result, Result) else None
        at = receipt.request
        return {
            "request_id": receipt.request_id,
            "topic": at.topic,
            "partition": at.partition,
            "offset": at.offset,
            "request_state": row["request_state"],
            "timestamp_ms": there and there.timestamp_ms,
            "key": there and _base64(there.key),
            "headers": [[name, _base64(value)] for name, value in there.headers] if there else [],
            "value": there and _base64(there.value),
            "result_state": row["result_state"],
            "error": answer and answer.error,
            "outputs": [_output(tensor) for tensor in answer.outputs] if answer else [],
        }

    async def _object(self, sha256: str) -> None:
        """An object of the artifact store, whole, or a word that it is not there."""
        path = self._root / "objects" / sha256
        try:
            await self._copy(await self._artifacts.named(sha256), path)
        except (ArtifactNotFound, DigestMismatch) as err:
            path.unlink(missing_ok=True)
            self._written.absent.append(f"{sha256}: {err.message}")

    async def _copy(self, artifact: Artifact, path: Path) -> None:
        with path.open("wb") as file:
            async for piece in self._artifacts.stream(artifact):
                file.write(piece)


def _record(row: Row, head: bytes) -> dict[str, Any]:
    return {
        "offset": row["offset"],
        "timestamp_ms": row["timestamp_ms"],
        "key": _base64(row["key"]),
        "value": _base64(row["value"]),
        "verdict": row["verdict"],
        "head": head.hex(),
    }


def _output(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "data": None if tensor.claimed else _base64(bytes(tensor.data)),
        "file": tensor.artifact.sha256 if tensor.claimed and tensor.artifact else None,
    }


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _line(lines: Any, value: dict[str, Any]) -> None:
    lines.write(json.dumps(value, separators=(",", ":")) + "\n")


def _digests(root: Path) -> dict[str, str]:
    found = {}
    for path in _files(root):
        with path.open("rb") as file:
            found[path.relative_to(root).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _files(root: Path) -> Iterable[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _zip(root: Path, out: Path) -> None:
    with zipfile.ZipFile(out, "x", zipfile.ZIP_DEFLATED) as archive:
        for path in _files(root):
            archive.write(path, path.relative_to(root).as_posix())
