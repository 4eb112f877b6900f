"""Facts of exports, on the registry's log (topic `models`): a version as a file of another format, and its maker."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shared.artifacts import Artifact
from shared.events import Fields, Finite, ModelEvent, Short, Text, VersionNumber


class ExportRequested(ModelEvent):
    """Somebody wants a ready version as a file of `format` (see `shared.exports`), built by whoever can."""

    export_id: Short
    version: VersionNumber
    format: Short
    variant: Short | None = None
    """Null: the one that serves; for formats that hold no quantized operators, the network as it came."""
    tenant: Short | None = None


class ExportEvent(ModelEvent):
    """Written by the owner of an attempt to build an export; ignored once the attempt is superseded."""

    export_id: Short
    attempt: Annotated[int, Meta(ge=1)]
    owner: Short


class ExportClaimed(ExportEvent):
    """`owner` (an instance, with its incarnation) wants to do attempt `attempt`. The first claim of it wins."""


class Parity(Fields):
    """The export and ONNX Runtime on the same inputs: how far apart they are at most, and may be."""

    batch_size: int
    max_abs_error: Finite
    tolerance: Finite
    """Of a value: this, and as much of the value's own size."""


class ExportReady(ExportEvent):
    """The file is in the artifact store, and gave the answers of ONNX Runtime when it was loaded again."""

    artifact: Artifact
    parity: tuple[Parity, ...] = ()
    """Empty where the bytes are those that serve."""
    tools: dict[Short, Short] = {}
    """Versions of what it was built with, by library."""


class ExportRejected(ExportEvent):
    """It can't be had in that format. `reason` names what stands in the way."""

    code: Short
    reason: Text
