"""Facts of replays: a recorded batch that is to run again, and what came of it.

`ReplayRequested` (topic `replays`) names a batch's members by their coordinates and carries their record values, or
where those lie in the artifact store if they are large, so that a worker needs nothing but this record and the pinned
artefact. `ReplayRan` (topic `replay-results`) answers it. Both may be repeated: the batch's id tells repeats, and the
first answer counts.

Members without `recorded_sha256` want their outputs back whatever they are: that is how a back-test asks.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from shared.artifacts import Artifact
from shared.events import Event, Fields, ModelName, Sha256, Short, Text, VersionNumber
from shared.outcome_events import Coordinates, Runtime
from shared.runtime_config import RuntimeConfig

MAX_MEMBERS: Final = 4096
INLINE_BYTES: Final = 512 * 1024
"""Values of a request to replay, and likewise outputs of an answer, that its record carries itself."""


class ReplayMember(Fields):
    """A recorded request, in the order of its batch."""

    request: Coordinates
    input_sha256: Sha256
    """Over the record's value, as the receipt has it; the worker holds it against what it got."""
    content_type: Text | None = None
    header_length: int | None = None
    """Bytes of the JSON part of the binary form."""
    rows: int | None = None
    """As recorded."""
    value: bytes = b""
    """The record's value, unless it lies in `artifact`."""
    artifact: Artifact | None = None
    recorded_sha256: Sha256 | None = None
    """The digest of the recorded outputs: equal ones are not sent back."""


class ReplayRequested(Event):
    """A batch is to run (again) on the artefact of this digest. The key of its record is `batch_id`."""

    replay_id: Short
    """Of the audit's run; its workers load the artefact from the store once, and check it."""
    batch_id: Short
    attempt: Annotated[int, Meta(ge=1)] = 1
    model: ModelName
    version: VersionNumber
    variant: Short
    artifact_sha256: Sha256
    processing_sha256: Sha256 | None = None
    members: Annotated[tuple[ReplayMember, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    members_sha256: Sha256 | None = None
    """As recorded: the members run together, whatever the variant's cap. Null: they do as far as it lets them."""
    runtime_config: RuntimeConfig | None = None
    """What the version was configured with when the batch ran; null: all as the worker is set."""
    digest_check: bool = True
    """Whether artefacts of another digest are refused (`digest_mismatch`)."""


class ReplayedOutput(Fields):
    """One output of a member."""

    name: Text
    datatype: Short
    shape: tuple[int, ...]
    data: bytes = b""
    """Raw, little-endian, unless it lies in `artifact`."""
    artifact: Artifact | None = None


class ReplayedRow(Fields):
    """What came of one member."""

    output_sha256: Sha256 | None = None
    """Null where it failed."""
    error_code: Short | None = None
    error: Text = ""
    infer_ns: int | None = None
    """Of the run it was in."""
    outputs: tuple[ReplayedOutput, ...] = ()
    """Where they are not the recorded ones."""


class ReplayRan(Event):
    """A batch ran, or could not. The key of its record is `batch_id`."""

    replay_id: Short
    batch_id: Short
    attempt: int
    status: Literal["ran", "failed"]
    error_code: Short | None = None
    """Why nothing ran, if nothing did."""
    error: Text = ""
    worker: Short
    runtime: Runtime | None = None
    artifact_sha256: Sha256 | None = None
    """Of the bytes that were loaded."""
    deterministic: bool = False
    """Whether the engine was told to compute the same each time: on the CPU it does anyway."""
    rows: tuple[ReplayedRow, ...] = ()
    """In the order of the members."""
