"""What requests and answers look like: types that the document's schemas are made from, and nothing else.

The maps themselves are made where they always were (`views`, `statistics`, `model_config`, …); tests hold each against
its shape. A field with `UNSET` may be absent. More fields may come with time: who reads them ignores what it does not
know.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from services.gateway.answers import STATUS_OF_CODE
from shared.events import Comparison, Conversion, MachineClass, Measurements, Provenance, StepPlace
from shared.export_events import Parity
from shared.heartbeat_events import LoadedModel
from shared.oip_shapes import InferenceResponse
from shared.optimization import Optimization, Policy, Training
from shared.outcome_events import Status
from shared.processing import Processing
from shared.tensors import Datatype

Size = Annotated[int, Meta(ge=0)]


class Error(Struct):
    """Any failure. `error` is for people and may change, `code` is for programs and does not."""

    error: str
    code: Annotated[str, Meta(extra_json_schema={"enum": [*STATUS_OF_CODE, "internal"]})]


# --------------------------------------------------------------------------- Open Inference Protocol


class Live(Struct):
    """The process answers."""

    live: bool


class Ready(Struct):
    """Whether requests are accepted, and what is waited for if not."""

    ready: bool
    waiting_for: list[str] | UnsetType = UNSET


class Server(Struct):
    """The server and which of Triton's extensions work here."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Struct):
    """A tensor that a model takes or gives; -1 is a free size."""

    name: str
    datatype: Datatype
    shape: list[Annotated[int, Meta(ge=-1)]]


class ModelMetadata(Struct):
    """What a version takes and gives. `versions` can answer now."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Struct):
    """A live worker holds it."""

    name: str
    ready: bool


# --------------------------------------------------------------------------- requests


class Accepted(Struct):
    """A request that is asked for later. `state` is queued, but for a repeat with an `Idempotency-Key`."""

    id: str
    state: Literal["queued"] | Status
    status_url: str


class Failure(Struct):
    """Why a request ended without outputs."""

    code: str
    message: str


class RequestState(Struct):
    """Where a request is; `status` is null until it has ended, `queue_position` 0 is next and null is unknown."""

    id: str
    model_name: str
    state: Literal["queued", "running"] | Status
    queue_position: Size | None
    status: Status | None
    result: InferenceResponse | None
    error: Failure | None


class StateEvent(Struct):
    """A server-sent event: `state` at once and at each change, `outcome` at the end."""

    event: Literal["state", "outcome"]
    id: str
    data: Annotated[
        str, Meta(description="a `RequestState`", extra_json_schema={"contentMediaType": "application/json"})
    ]
    retry: Annotated[int, Meta(description="ms until a client that lost the stream comes back")] | UnsetType = UNSET


# --------------------------------------------------------------------------- models


class Uploaded(Struct):
    """A version that is in the log; what the optimizer makes of it is told at `status_url`."""

    name: str
    version: int
    sha256: str
    state: str
    status_url: str


class Routing(Struct):
    """Which versions answer requests that name none: the active one, or several by weight."""

    name: str
    unloaded: bool
    active: int | None
    previous: list[int]
    weights: dict[str, Annotated[int, Meta(ge=0, le=1_000_000)]]


class VariantState(Struct):
    """A variant that passed the gate, with what was measured of it."""

    name: str
    chosen: bool
    sha256: str
    byte_size: Size
    engine: str
    batch_cap: int
    measurements: Measurements
    provenance: Provenance | None
    reason: str


class RejectedVariant(Struct):
    """A candidate that did not pass."""

    variant: str
    reason: str
    measurements: Measurements | None
    provenance: Provenance | None


class CurvePoint(Struct):
    """The newest point of a curve, such as `loss/train`."""

    step: int
    value: float


class Progress(Struct):
    """Where the optimizer is; `remaining_s` is a guess from what it took so far."""

    step: str
    fraction: Annotated[float, Meta(ge=0, le=1)]
    remaining_s: float | None
    points: dict[str, CurvePoint]


class FinishedStep(Struct):
    """A step that is done for good, `sha256` being the file that it made."""

    name: str
    seconds: float
    sha256: str | None
    reused_from: StepPlace | None


class ModelPolicy(Struct):
    """What versions that say nothing themselves are judged by."""

    name: str
    policy: Policy | None


class FeedbackTaken(Struct):
    """The feedback is in the log."""

    model_name: str
    request_id: str


class VersionState(Struct):
    """A version: how far it is, what was measured, what was chosen and why others were not."""

    name: str
    version: int
    state: Literal["uploaded", "optimizing", "ready", "rejected", "retired"]
    active: bool
    progress: Progress | None
    attempt: int
    sha256: str
    byte_size: Size
    format: str
    recognised: str | None
    needs: list[str]
    waits_for: str | None
    conversion: Conversion | None
    processing: Processing | None
    upload_id: str
    uploaded_at: str
    chosen: str | None
    code: str | None
    reason: str | None
    parent: int | None
    training: Training | None
    optimization: Optimization | None
    runtime: dict[str, Any] | None
    comparison: Comparison | None
    steps: list[FinishedStep]
    variants: list[VariantState]
    rejected: list[RejectedVariant]


class ModelState(Routing):
    """A model and its versions, the newest first."""

    retired: bool
    policy: Policy | None
    versions: list[VersionState]


class RuntimeConfigured(Struct):
    """What is configured of a version, or of all of a model; `{}`: as workers are set."""

    name: str
    version: int | None
    runtime: dict[str, Any]


class Instance(Struct):
    """A live worker or optimizer."""

    instance: str
    service: Literal["worker", "optimizer"]
    machine: MachineClass
    loaded: list[LoadedModel]
    registry_offset: int


class ExportState(Struct):
    """An export: how far it is, and how far its answers are from ONNX Runtime's."""

    id: str
    name: str
    version: int
    format: str
    variant: str
    state: Literal["queued", "building", "ready", "rejected"]
    requested_at: str
    sha256: str | None
    byte_size: Size | None
    parity: list[Parity]
    tools: dict[str, str]
    code: str | None
    reason: str | None
    status_url: str
    file_url: str | None


class Traffic(Struct):
    """Shares of the requests that name no version; an empty map ends the split."""

    weights: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=1_000_000)]],
        Meta(extra_json_schema={"maxProperties": 100, "propertyNames": {"pattern": "^[1-9][0-9]{0,8}$"}}),
    ]
