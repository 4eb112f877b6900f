"""Every fact on Kafka, one frozen struct each, named in the past tense.

`topics.py` says which topic carries which. An event never changes its meaning: a field may be added with a default;
anything else is a new `schema` (see `codec`). What the annotations demand is checked where an event is decoded, not
where it is made: what a user says is held against them before (see the gateway's request bodies). Digests are lowercase
hex SHA-256; times in fields are nanoseconds since the epoch (`*_ns`) or RFC 3339 strings (`*_at`), durations
nanoseconds unless the name says otherwise.
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
    """How an upload that was no single ONNX file became one, and how close the two answered, run side by side."""

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


# --------------------------------------------------------------------------- receipts (`outcomes`)

Status = Literal["succeeded", "failed", "expired", "cancelled"]


class Coordinates(Fields):
    """Where a record lies. `cluster_id` tells clusters apart in an archive."""

    cluster_id: str | None = None
    topic: str
    partition: int
    offset: int


class Runtime(Fields):
    """What ran the batch, as far as it can change a bit of the answer."""

    engine: str
    version: str
    provider: str
    options: dict[str, str | int | bool]
    threads: int
    isa: str


class BatchMembership(Fields):
    """Which batch the request ran in, and where in it."""

    id: str
    index: int
    size: int
    """Requests in the batch."""
    padding: int
    members_sha256: str
    """Over each member's `topic-partition-offset` and `input_sha256`, separated by a space, one a line, in order."""
    rows: int | None = None
    """Rows of this request; null where the model's rows were not proved independent: the request then ran alone."""
    total_rows: int | None = None
    """Rows of the whole batch, since one member speaks for the run in statistics; null where `rows` is."""


class Timings(Fields):
    """Where the time went, in nanoseconds. `queue` alone where nothing ran."""

    queue: int
    compute_input: int | None = None
    compute_infer: int | None = None
    compute_output: int | None = None


class Receipt(Event):
    """The one outcome of an accepted request, in `outcomes` and in its result."""

    request_id: str
    duplicate_of: Coordinates | None = None
    tenant: str | None = None
    model_name: str
    model_version: int | None = None
    variant: str | None = None
    artifact_sha256: str | None = None
    registry_offset: int
    """The registry that chose the version; -1 where none was chosen."""
    status: Status
    error_code: str | None = None
    request: Coordinates
    input_sha256: str
    output_sha256: str | None = None
    runtime: Runtime | None = None
    batch: BatchMembership | None = None
    timings_ns: Timings
    worker: str
    reexecuted: bool = False
    completed_at: str
    processing_sha256: str | None = None
    """The digest of the version's declared processing; null where there is none. `artifact_sha256` is the model's."""


# --------------------------------------------------------------------------- statistics (`statistics`)


class Duration(Fields):
    """How often something was done, and the nanoseconds it took altogether."""

    count: int = 0
    ns: int = 0


class RunStatistics(Fields):
    """Runs of the model with one number of rows. A run's times count once, not for each request."""

    batch_size: int
    """Rows; where receipts do not tell them, requests."""
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(Event):
    """What came of the requests to a version since the log began. The topic is compacted by `model/version`.

    Exact for the outcomes below `offsets`. Phases count succeeded requests; `runs` only runs that succeeded.
    """

    model: ModelName
    version: VersionNumber
    last_inference_ms: int
    """When the last outcome was appended, in ms since the epoch."""
    inferences: int
    """Rows that runs answered, 1 for a request whose receipt tells none.

    A duplicate, which got the first one's answer, succeeds without one. `compute_infer` counts the requests.
    """
    success: Duration
    fail: Duration
    """Failed, expired or cancelled."""
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    runs: tuple[RunStatistics, ...] = ()
    offsets: dict[int, int]
    """The next offset to fold, by partition of the outcome log."""

    @property
    def executions(self) -> int:
        """Runs of the model."""
        return sum(run.compute_infer.count for run in self.runs)


# --------------------------------------------------------------------------- heartbeats (`workers`)


class LoadedModel(Fields):
    """A variant in memory."""

    model: str
    version: int
    variant: str
    artifact_sha256: str
    byte_size: int
    engine: Short = ""
    provider: Short = ""
    """The one that it got, whatever was asked for."""
    threads: int = 0
    session_sha256: Sha256 | None = None
    """Of the runtime configuration that it was loaded with; null where all is as the worker is set."""


class Heartbeat(Event):
    """An instance is alive. The topic is compacted by `instance`."""

    instance: str
    incarnation: str
    """Fresh at each start of the process: a restarted owner no longer holds its claims."""
    service: Literal["worker", "optimizer"]
    machine: MachineClass
    loaded: tuple[LoadedModel, ...] = ()
    registry_offset: int
    lag: dict[str, int] = {}
    """Records not yet taken, by model."""
    queued: dict[str, int] = {}
    """Records taken and not yet answered, by model."""
    answered: dict[str, int] = {}
    """Records that got their outcome since the start of the process, by model."""
    positions: dict[str, int] = {}
    """Offset of the first record not yet answered, by request partition (`topic/partition`) that this worker holds."""
    interval_s: Finite
    """The next one is due within this time."""
    tools: tuple[Short, ...] = ()
    """Libraries that an optimizer has beside those that all have: which formats it takes depends on them."""


# --------------------------------------------------------------------------- measurements (`metrics`)


class MetricEvent(Event):
    """A measurement by an instance; `(instance, incarnation, seq)` tells repeats."""

    instance: str
    incarnation: str
    service: str
    seq: int
    at_ns: int


class GpuSample(Fields):
    """One GPU, by NVML."""

    index: int
    name: str
    utilisation_percent: Finite
    memory_used_bytes: int
    memory_total_bytes: int
    power_w: Finite | None = None
    temperature_c: Finite | None = None


class HostSampled(MetricEvent):
    """CPU, memory, disk and GPU of a process and its host."""

    cpu_percent: Finite
    """Of this process; 100 is one core."""
    rss_bytes: int
    host_cpu_percent: Finite
    host_memory_used_bytes: int
    host_memory_total_bytes: int
    disk_used_bytes: int
    disk_total_bytes: int
    disk_read_bytes: int
    disk_written_bytes: int
    gpus: tuple[GpuSample, ...] = ()
    loop_delay_s: Finite
    """Largest delay of the event loop since the last sample."""
    network_received_bytes: int = 0
    """By the host since its start, as are disk's."""
    network_sent_bytes: int = 0


class BatchesRan(MetricEvent):
    """Runs of one variant since the last such event of the instance."""

    model: str
    version: int
    variant: str
    executions: int
    sizes: dict[int, int]
    """Executions by number of requests in the batch."""
    compute_infer_ns: int


class Feature(Fields):
    """One number of each of many rows, as a histogram."""

    kind: Literal["number", "class"]
    """`number`: bins as `shared.bins` has them. `class`: which of the numbers in the row is the largest."""
    bins: dict[int, int]
    """Rows by bin."""


class RowsObserved(MetricEvent):
    """What a worker saw of the rows that went into, and came out of, one variant: of a sample of them."""

    model: str
    version: int
    variant: str
    rows: int
    features: dict[Short, Feature]
    """By what was taken of each row, as `input/x/mean`."""


class HttpAnswered(MetricEvent):
    """Answers of a gateway since its last such event, by status code."""

    statuses: dict[int, int]
    in_flight: int
    unready: int = 0
    """Of the 503: answers to who only looked (GET, HEAD), as readiness is asked for. Nobody was refused."""


class JobProgressed(MetricEvent):
    """An optimizer's job: which step it is in and how far."""

    model: str
    version: int
    attempt: int
    step: str
    fraction: Finite
    """Of the whole job."""
    remaining_s: Finite | None = None
    """How long it may still take, guessed from what it took so far."""
    points: dict[str, tuple[int, Finite]] = {}
    """The newest point of each curve, as `loss/train`: its place (step or epoch) and value."""


# --------------------------------------------------------------------------- speed elsewhere (`measurements`)

MAX_MEASURED: Final = 64


class MeasurementRequested(Event):
    """An optimizer asks one worker, of another class than its own, how fast forms of a model are there."""

    id: Short
    """Of the question; the answer repeats it."""
    model: ModelName
    version: VersionNumber
    asked_by: Short
    """The optimizer, with its incarnation."""
    worker: Short
    """Whom it asks, with its incarnation: one that has started anew since then does not answer."""
    reference: Artifact
    candidates: Annotated[dict[Short, Artifact], Meta(max_length=MAX_MEASURED)]
    signature: Signature
    inputs: Artifact
    """What to run it on, a `.npz`: `{batch size}.{place of the input in the signature}`."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600)]
    """Nobody waits for the answer any longer."""
    runtime: RuntimeConfig | None = None
    """How the version would be run."""


class MeasurementTaken(Event):
    """How fast they are there, or why that is not known."""

    id: Short
    worker: Short
    latencies: Annotated[dict[Short, tuple[Latency, ...]], Meta(max_length=MAX_MEASURED)] = {}
    """By candidate, each measured by turns with the reference."""
    problems: Annotated[dict[Short, Text], Meta(max_length=MAX_MEASURED)] = {}
    """By candidate that does not run there, why."""
    failed: Text = ""
    """Why nothing was measured."""


# --------------------------------------------------------------------------- alerts (`alerts`)


class AlertEvent(Event):
    """Something that a person may want to look at. The key of its record is `alert`."""

    alert: Short
    """Which one: the same from when it is raised until it is cleared."""
    rule: Short
    severity: Literal["warning", "critical"]
    model: Short | None = None
    version: int | None = None
    instance: Short | None = None
    value: Finite
    threshold: Finite
    """Which the value passed."""
    message: Text
    at_ns: int


class AlertRaised(AlertEvent):
    """The rule holds, and has for as long as it asks for."""


class AlertCleared(AlertEvent):
    """It holds no more."""


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
