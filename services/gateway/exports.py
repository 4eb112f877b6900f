"""Exports: a version asked for in another format, and its file on the way out.

Asking is a fact on the log; an optimizer with the means builds it. Nothing is built here, and no library for it is: the
gateway knows names. What was asked for before, of the same bytes and the same format, is not built again.
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from services.gateway.paths import version_url
from shared import export_events
from shared.codec import rfc3339
from shared.errors import Conflict, InvalidInput, ModelNotReady, UnknownExport, Unsupported
from shared.exports import FORMATS, TORCH, same, source_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from services.gateway.gateway import Backbone
    from shared.artifacts import Artifact
    from shared.exports import Export
    from shared.heartbeat_events import Heartbeat
    from shared.registry import Model


@dataclass(frozen=True, slots=True)
class Asked:
    """An export to be."""

    model: str
    version: int
    format: str
    variant: str | None
    tenant: str | None


async def export(backbone: Backbone, asked: Asked) -> Export:
    """Ask for a version in a format; returns what the fold made of it, or the same one as it was asked for before.

    Raises:
        UnknownModel, UnknownVersion: there is no such version.
        InvalidInput: there is no such format or variant.
        Unsupported: live optimizers all lack what the format is built with.
        ModelNotReady: the version is not through the gate.
        Conflict: it never will be, or somebody changed it at the same moment.
        LogUnavailable: Kafka did not take it.
    """
    registry = backbone.log.registry
    version = registry.version(asked.model, asked.version)
    if asked.format not in FORMATS:
        raise InvalidInput(f"format {asked.format[:40]!r} is none of {', '.join(FORMATS)}")
    if version.state != "ready":
        what = f"version {asked.version} of model {asked.model!r} is {version.state}: only a ready one can be exported"
        raise ModelNotReady(what) if version.is_open else Conflict(what)
    source = source_of(version, asked.format, asked.variant)
    if source is None:
        known = ", ".join(version.variants)
        raise InvalidInput(f"variant {(asked.variant or '')[:80]!r} is none of {known}")
    _check_means(asked.format, source.engine, version.program_format, backbone.heartbeats.alive())
    if (there := same(registry.model(asked.model).exports, asked.version, asked.format, source.artifact)) is not None:
        return there
    event = export_events.ExportRequested(
        model=asked.model,
        export_id=str(uuid.uuid4()),
        version=asked.version,
        format=asked.format,
        variant=asked.variant,
        tenant=asked.tenant,
    )
    after = (await backbone.log.publish(event)).model(asked.model)
    if event.export_id not in after.exports:
        raise Conflict(f"version {asked.version} of model {asked.model!r} was changed at the same moment: look again")
    return after.exports[event.export_id]


def _check_means(file_format: str, engine: str, program_format: str, alive: Iterable[Heartbeat]) -> None:
    if engine == TORCH and file_format not in (own := (program_format, "bundle")):
        what = f"it is served as it was uploaded, since it does not become ONNX: {file_format} can't be had of it"
        raise Unsupported(f"{what}, only {' and '.join(own)}")
    needs = FORMATS[file_format].needs
    optimizers = [beat for beat in alive if beat.service == "optimizer"]
    if needs and engine != needs and optimizers and not any(needs in beat.machine.engines for beat in optimizers):
        raise Unsupported(f"format {file_format} is built with {needs}, which no live optimizer has")


def found(model: Model, version: int, export_id: str) -> Export:
    """An export by its id.

    Raises:
        UnknownExport: there is none of this version, or it was forgotten.
    """
    export = model.exports.get(export_id)
    if export is None or export.version != version:
        raise UnknownExport(f"version {version} of model {model.name!r} has no export {export_id[:80]!r}")
    return export


def view(model: Model, export: Export) -> dict[str, Any]:
    """As JSON."""
    url = f"{version_url(model.name, export.version)}/export/{export.id}"
    return {
        "id": export.id,
        "name": model.name,
        "version": export.version,
        "format": export.format,
        "variant": export.variant,
        "state": export.state,
        "requested_at": rfc3339(export.requested_ms * 1_000_000),
        "sha256": None if export.artifact is None else export.artifact.sha256,
        "byte_size": None if export.artifact is None else export.artifact.byte_size,
        "parity": to_builtins(export.parity),
        "tools": dict(export.tools or {}),
        "code": export.code,
        "reason": export.reason,
        "status_url": url,
        "file_url": f"{url}/file" if export.state == "ready" else None,
    }


def headers(model: Model, export: Export, artifact: Artifact) -> dict[str, str]:
    """Of the file: what to call it, how long it is, and its digest (RFC 9530)."""
    name = f"{model.name}-{export.version}{FORMATS[export.format].suffix}"
    digest = base64.b64encode(bytes.fromhex(artifact.sha256)).decode()
    return {
        "content-length": str(artifact.byte_size),
        "content-disposition": f'attachment; filename="{name}"',
        "content-digest": f"sha-256=:{digest}:",
    }


async def pieces(first: memoryview, rest: AsyncIterator[memoryview]) -> AsyncIterator[bytes]:
    """The file piece by piece. The last one goes out when the digest was right; else the connection is cut."""
    held = first
    async for piece in rest:
        yield bytes(held)
        held = piece
    yield bytes(held)
