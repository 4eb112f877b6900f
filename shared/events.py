"""Every fact on Kafka, one frozen struct each, named in the past tense: what all share, and the registry's log.

Other families have modules of their own: `export_events`, `outcome_events`, `heartbeat_events`, `metric_events`,
`measurement_events`, `alert_events`, `replay_events`. `topics.py` says which topic carries which.

An event never changes its meaning: a field may be added with a default; anything else is a new `schema` (see `codec`).
What the annotations demand is checked where an event is decoded, not where it is made: what a user says is held against
them before (see the gateway's request bodies). Digests are lowercase hex SHA-256; times in fields are nanoseconds since
the epoch (`*_ns`) or RFC 3339 strings (`*_at`), durations nanoseconds unless the name says otherwise.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final, Literal, dataclass_transform

from msgspec import Meta, Struct, StructMeta

from shared.artifacts import Artifact
from shared.optimization import Optimization, Policy, Training
from shared.processing import Processing
from shared.runtime_config import ONNXRUNTIME, RuntimeConfig
from shared.signature import Signature

MODEL_NAME: Final = r"\A[A-Za-z0-9][A-Za-z0-9-]{0,99}\Z"
ModelName = Annotated[str, Meta(pattern=MODEL_NAME)]
Text = Annotated[str, Meta(max_length=4000)]
"""Prose for people, bounded because anyone may write to the log."""
Short = Annotated[str, Meta(max_length=200)]
MAX_VERSION = 2**31 - 1
VersionNumber = Annotated[int, Meta(ge=1, le=MAX_VERSION)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
MAX_FEEDBACK_ROWS: Final = 1024
MAX_FEEDBACK_NUMBERS: Final = 65_536
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Neither infinite nor NaN, which JSON does not have."""


class _Named(StructMeta):
    """Every struct is frozen and made by naming its fields; msgspec lets no class inherit that.

    Fields by name also keep their order, those of the base first: in a record, `schema` stands before all others.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any) -> Any:
        return super().__new__(mcs, name, bases, namespace, **{"frozen": True, "kw_only": True, **config})


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Fields(Struct, metaclass=_Named, frozen=True):
    """A part of an event."""


class Event(Fields):
    """A fact. Subclasses are listed by topic in `shared.topics`."""

    schema: int = 1
    """The version of the event's form; the default is the newest, and the only one that is written."""


# --------------------------------------------------------------------------- the registry's log (`models`)


class ModelEvent(Event):
    """A fact about one model; the key of its record is `model`."""

    model: ModelName


class ModelUploaded(ModelEvent):
    """A model file is in the artifact store. The fold gives it a version number, in log order."""

    upload_id: Short
    artifact: Artifact
    format: Literal["onnx"] = "onnx"
    requested_version: VersionNumber | None = None
    tenant: Short | None = None
    processing: Processing | None = None
    """The steps before and after the model, for as long as the version lives."""
    optimization: Optimization | None = None
    """Data, policy and candidates, where the uploader has a say in them."""
    runtime: RuntimeConfig | None = None
    """How workers are to run it; null: as the model is configured."""


class UpdateRequested(ModelEvent):
    """A new version is to be trained from a ready one. The fold gives it a number, as it does an upload."""

    upload_id: Short
    parent: VersionNumber
    training: Training
    optimization: Optimization
    requested_version: VersionNumber | None = None
    tenant: Short | None = None


class PolicySet(ModelEvent):
    """Versions that say nothing else are judged by this from now on; null: by the optimizer's settings again."""

    policy: Policy | None = None


class RuntimeConfigured(ModelEvent):
    """Workers run a version like this from now on; null: as they are set.

    Without `version` it holds for all versions that are there, and for those to come that bring none of their own.
    """

    version: VersionNumber | None = None
    config: RuntimeConfig | None = None


class OptimizationCancelled(ModelEvent):
    """Nobody wants the version any more: unless it is ready or rejected already, work on it ends."""

    version: VersionNumber
    reason: Short = ""


class AttemptEvent(ModelEvent):
    """Written by the owner of an attempt to optimize a version; ignored once the attempt is superseded."""

    version: VersionNumber
    attempt: Annotated[int, Meta(ge=1)]
    owner: Short


class OptimizationClaimed(AttemptEvent):
    """`owner` (an instance, with its incarnation) wants to do attempt `attempt`. The first claim of it wins."""


class Conversion(Fields):
    """How an upload that was no single ONNX file became one, and how close the two answered; or why it did not."""

    format: Short
    """What the upload was."""
    sha256: Sha256
    """The upload's digest."""
    how: Text = ""
    """The exporter, and what was done to its result."""
    opset: int = 0
    shapes: tuple[Annotated[str, Meta(max_length=1000)], ...] = ()
    """The shapes at which both were run, as text."""
    max_abs_error: Finite = 0.0
    """The largest difference between two numbers at any of them."""
    rtol: Finite = 0.0
    atol: Finite = 0.0
    """What was allowed: `|a - b| <= atol * max(1, |b| at most) + rtol * |b|`."""
    engine: Short = ONNXRUNTIME
    """What runs the file: `torch` where the upload did not become ONNX, and is served as it is."""
    problem: Text = ""
    """Why it did not."""


class StepPlace(Fields):
    """Where a step was done."""

    model: ModelName
    version: VersionNumber
    step: Short


class StepFinished(AttemptEvent):
    """A step of the version's plan is done, and stays so whoever goes on with the version.

    `key` is the digest of all that its result depends on.
    """

    step: Short
    key: Sha256
    result: Artifact
    """The JSON document of what it found; see `services.optimizer.results`."""
    file: Artifact | None = None
    """The model or data set that it made."""
    reused_from: StepPlace | None = None
    """It was not done: the same was done there."""
    seconds: Finite = 0.0
    """What it took, 0 if it was reused."""
    conversion: Conversion | None = None
    """Of the step that made the upload an ONNX file."""


class FormatRecognised(AttemptEvent):
    """The upload is not ONNX as it runs here, but of a format that can be converted by an optimizer with `needs`."""

    format: Short
    needs: tuple[Short, ...] = ()
    """Libraries, by name; heartbeats of optimizers say who has which (`Heartbeat.tools`)."""
    handed_on: bool = False
    """The owner has them not: its attempt is over, and the version waits for one that has."""


class Latency(Fields):
    """Median seconds of one run at a batch size, on the machine that measured."""

    batch_size: int
    p50_s: Finite
    reference_s: Finite | None = None
    """That of fp32, measured by turns with it."""


class Estimate(Fields):
    """A share or a mean over `rows` rows, and the ends of its 95% interval."""

    value: Finite
    low: Finite
    high: Finite
    rows: int


class MachineClass(Fields):
    """What kind of machine an instance runs on: measurements hold within one class."""

    isa: str
    providers: tuple[str, ...] = ()
    threads: int = 0
    engines: dict[Short, Short] = {}
    """What can run or build models here, with versions: `onnxruntime`, `torch`, `tensorflow`."""
    cpus: int = 0
    """Those that the process may use."""
    memory_bytes: int = 0
    python: Short = ""

    def __str__(self) -> str:
        provider = self.providers[0].removesuffix("ExecutionProvider") if self.providers else "?"
        return f"{self.isa}, {provider}, {self.threads} thread{'' if self.threads == 1 else 's'}"


class OnWorker(Fields):
    """What a candidate took on a worker of another class than the optimizer's, beside fp32 there."""

    machine: MachineClass
    worker: Short
    latencies: tuple[Latency, ...] = ()
    problem: Text = ""
    """Why it does not run there; then there are no latencies."""


class Measurements(Fields):
    """What the gate measured of a candidate, beside its fp32 reference."""

    max_abs_error: Finite | None = None
    cosine: Finite | None = None
    top1_agreement: Finite | None = None
    row_independent: bool | None = None
    latencies: tuple[Latency, ...] = ()
    speedup: Finite | None = None
    """Reference time over this variant's, geometric mean over the batch sizes."""
    byte_size: int = 0
    machine: Short = ""
    quality: dict[Short, Estimate] = {}
    """Metrics of the task by name, where there were labels; of agreement with the reference where there were none."""
    throughput_rows_s: Finite | None = None
    """Rows a second at the batch size at which they are most."""
    memory_bytes: int | None = None
    """What loading and running it added to the process."""
    judged_on: Short = ""
    """The digest of the data set, or `synthetic`."""
    on_workers: tuple[OnWorker, ...] = ()
    """By each class of worker that would serve it and is not the optimizer's own."""


class DataUsed(Fields):
    """A data set as it was used."""

    sha256: Sha256
    rows: int
    offsets: dict[Short, tuple[int, int]] = {}
    """Where it was drawn from the log: `topic/partition` to the first offset and the one behind the last."""


class Provenance(Fields):
    """What an artifact was made of, and how: enough to make it again."""

    parent_sha256: Sha256
    """The file that the recipe was applied to."""
    recipe: Short
    parameters: Annotated[str, Meta(max_length=16_384)] = "{}"
    """Of the recipe, as JSON."""
    seed: int = 0
    tools: dict[Short, Short] = {}
    """Versions by library."""
    data: dict[Short, DataUsed] = {}
    """By what it was used for."""
    same_bytes: bool = False
    """The recipe is of those that give the same bytes again, with the same tools on the same class of machine."""


class Comparison(Fields):
    """An update beside its parent, on the same data."""

    parent: VersionNumber
    metric: Short
    own: Estimate
    parents: Estimate
    worse: bool
    """By more than the policy allows."""


class VariantReady(AttemptEvent):
    """A variant passed the gate and may serve."""

    variant: Short
    artifact: Artifact
    signature: Signature
    batch_cap: Annotated[int, Meta(ge=1)]
    """Most rows in one run; 1 if answers were not proved independent of their neighbours."""
    measurements: Measurements
    provenance: Provenance | None = None
    reason: Text = ""
    """Why it was kept."""
    engine: Short = ONNXRUNTIME
    """What runs it: `onnxruntime`, or `torch` for a `.pt2` that does not convert."""


class VariantRejected(AttemptEvent):
    """A candidate did not build, or did not pass the gate."""

    variant: Short
    reason: Text
    measurements: Measurements | None = None
    provenance: Provenance | None = None


class ModelReady(AttemptEvent):
    """The version may serve with `variant`, the gate's choice by policy."""

    variant: Short
    reason: Text
    comparison: Comparison | None = None
    """Of an update: it can be promoted if it is there and not worse."""


class ModelRejected(AttemptEvent):
    """The upload can't be served. `reason` tells its owner what to do."""

    code: Short
    reason: Text


class ModelPromoted(ModelEvent):
    """From here on `version` answers requests that name none."""

    version: VersionNumber


class TrafficSplit(ModelEvent):
    """Requests that name no version are spread over versions by weight, by hash of the request id."""

    weights: dict[VersionNumber, Annotated[int, Meta(ge=0, le=1_000_000)]]


class ModelRolledBack(ModelEvent):
    """The version that was active before answers again."""


class ModelRetired(ModelEvent):
    """`version`, or the whole model if it is absent, answers no more."""

    version: VersionNumber | None = None


class ModelUnloaded(ModelEvent):
    """No version answers until `ModelLoaded`; workers let go of it. Versions, promotion and weights are kept."""


class ModelLoaded(ModelEvent):
    """What was unloaded answers again, as before."""


# --------------------------------------------------------------------------- ground truth (`feedback`)


class FeedbackGiven(Event):
    """What the right answer to an earlier request would have been. The key of its record is `request_id`.

    The last one for a request counts. `label` is a class for each row; `outputs` are whole answers, flat, by output.
    """

    model: ModelName
    request_id: Annotated[str, Meta(min_length=1, max_length=200)]
    label: Annotated[tuple[int, ...], Meta(max_length=MAX_FEEDBACK_ROWS)] | None = None
    outputs: dict[Short, Annotated[tuple[Finite, ...], Meta(max_length=MAX_FEEDBACK_NUMBERS)]] = {}
    source: Short = ""
    """Who says so."""
