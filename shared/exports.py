"""Exports: a served version given back in another format, as the registry's log has it.

`ExportRequested` asks for one, an optimizer with the means claims it (`ExportClaimed`: the first claim of an attempt
wins, the next may be made once its owner is gone), and `ExportReady` or `ExportRejected` ends it. Pure, like the
registry, which holds the newest `KEPT` of each model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from shared import export_events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.artifacts import Artifact
    from shared.registry import Variant, Version

KEPT: Final = 100
"""Exports of one model; older ones are forgotten, their files stay in the store."""
MAX_ATTEMPTS: Final = 3
REFERENCE: Final = "fp32"
TORCH: Final = "torch"
TENSORFLOW: Final = "tensorflow"

ExportState = Literal["queued", "building", "ready", "rejected"]


@dataclass(frozen=True)
class Format:
    """A format that a version can be had in."""

    suffix: str
    media_type: str
    needs: str | None = None
    """The library that an optimizer must have to build it."""
    own_network: bool = False
    """It holds the version's own network rather than the chosen variant: formats without quantized operators."""


FORMATS: Final[Mapping[str, Format]] = {
    "onnx": Format(".onnx", "application/octet-stream"),
    "bundle": Format(".zip", "application/zip"),
    "pt2": Format(".pt2", "application/zip", TORCH, own_network=True),
    "torchscript": Format(".pt", "application/zip", TORCH, own_network=True),
    "savedmodel": Format(".zip", "application/zip", TENSORFLOW, own_network=True),
}


@dataclass(frozen=True)
class Export:
    """What was asked for, and what became of it."""

    id: str
    version: int
    format: str
    variant: str
    source: Artifact
    """The variant's file, as it was when the export was asked for."""
    tenant: str | None
    requested_ms: int
    state: ExportState = "queued"
    attempt: int = 0
    owner: str | None = None
    artifact: Artifact | None = None
    parity: tuple[export_events.Parity, ...] = ()
    tools: Mapping[str, str] | None = None
    code: str | None = None
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether somebody still has to build it."""
        return self.state in ("queued", "building")


def source_of(version: Version, file_format: str, variant: str | None) -> Variant | None:
    """The variant that an export is made from: the one named, else the chosen one, or the network as it came."""
    if version.state != "ready" or file_format not in FORMATS:
        return None
    if variant is None and FORMATS[file_format].own_network and REFERENCE in version.variants:
        variant = REFERENCE
    return version.variants.get(variant or version.chosen or "")


def requested(
    exports: Mapping[str, Export], event: export_events.ExportRequested, version: Version | None, timestamp_ms: int
) -> Mapping[str, Export]:
    """One more, unless its id is taken or there is nothing to export."""
    variant = None if version is None else source_of(version, event.format, event.variant)
    if variant is None or event.export_id in exports:
        return exports
    asked = Export(
        id=event.export_id,
        version=event.version,
        format=event.format,
        variant=variant.name,
        source=variant.artifact,
        tenant=event.tenant,
        requested_ms=timestamp_ms,
    )
    kept = list(exports.items())[-(KEPT - 1) :]
    return {**dict(kept), asked.id: asked}


def attempted(exports: Mapping[str, Export], event: export_events.ExportEvent) -> Mapping[str, Export]:
    """After a claim or a result; what was superseded changes nothing."""
    export = exports.get(event.export_id)
    if export is None or not export.is_open:
        return exports
    if isinstance(event, export_events.ExportClaimed):
        if event.attempt != export.attempt + 1:
            return exports
        return {**exports, export.id: replace(export, state="building", attempt=event.attempt, owner=event.owner)}
    if (event.attempt, event.owner) != (export.attempt, export.owner):
        return exports
    match event:
        case export_events.ExportReady():
            done = replace(export, state="ready", artifact=event.artifact, parity=event.parity, tools=event.tools)
            return {**exports, export.id: done}
        case export_events.ExportRejected():
            return {**exports, export.id: replace(export, state="rejected", code=event.code, reason=event.reason)}
        case _:
            return exports


def same(exports: Mapping[str, Export], version: int, file_format: str, source: Artifact) -> Export | None:
    """An export of the same bytes to the same format that is there or under way."""
    alike = [
        export
        for export in exports.values()
        if (export.version, export.format, export.source.sha256) == (version, file_format, source.sha256)
    ]
    return next((export for export in reversed(alike) if export.state != "rejected"), None)
