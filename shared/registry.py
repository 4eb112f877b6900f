"""The registry of models: a pure fold over the `models` log.

`fold(registry, entry)` gives the next registry; nothing else changes one. The log has one partition, so its order is
the order of the world: the fold numbers versions, decides which claim of an attempt won, and ignores what came too
late or was not allowed (a repeat of an upload, a result of a superseded attempt, a promotion of what is not ready).
So every reader at an offset holds the same registry, and `as_of` is the same fold, stopped earlier.

The log is open to upstream systems: an event that makes no sense folds to no change but the offset. The writer learns
by reading its own event back (see `shared.registry_log`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from shared import events as ev
from shared import export_events, exports
from shared.errors import ModelNotLoaded, ModelNotReady, ModelRejected, ModelRetired, UnknownModel, UnknownVersion
from shared.processing import sha256 as processing_sha256
from shared.runtime_config import ONNXRUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shared.artifacts import Artifact
    from shared.exports import Export
    from shared.optimization import Optimization, Policy, Training
    from shared.processing import Processing
    from shared.runtime_config import RuntimeConfig
    from shared.signature import Signature

VersionState = Literal["uploaded", "optimizing", "ready", "rejected", "retired"]
MAX_ATTEMPTS = 3
"""Claims of one version that may be made without a step finished between them before the step is given up."""
CANONICAL = "canonical"
"""The step that makes one ONNX file of an upload of another format: what the version is from then on made of."""
TRAIN = "train"
"""The step of an update whose file becomes the version's own."""
CANCELLED = "cancelled"
"""The code of a version that was cancelled."""


@dataclass(frozen=True)
class Entry:
    """A record of the log: where, when (ms since the epoch, by the broker) and what; None if it could not be read."""

    offset: int
    timestamp_ms: int
    event: ev.Event | None


@dataclass(frozen=True)
class Variant:
    """An executable form of a version that passed the gate."""

    name: str
    artifact: Artifact
    signature: Signature
    batch_cap: int
    measurements: ev.Measurements
    processing: Processing | None = None
    """Its version's steps before and after the model."""
    processing_sha256: str | None = None
    provenance: ev.Provenance | None = None
    reason: str = ""
    engine: str = ONNXRUNTIME
    """What runs it."""
    runtime: RuntimeConfig | None = None
    """How, where that was said."""

    @property
    def key(self) -> tuple[str, str | None, str | None]:
        """What it computes and how: the digests of the model file, the steps around it, and the session's options."""
        session = None if self.runtime is None else self.runtime.session_sha256
        return self.artifact.sha256, self.processing_sha256, session

    @property
    def row_cap(self) -> int:
        """Most rows in one run: `batch_cap`, unless it is configured to be less."""
        return self.batch_cap if self.runtime is None else self.runtime.row_cap(self.batch_cap)


@dataclass(frozen=True)
class Rejection:
    """A candidate that did not pass, and why."""

    variant: str
    reason: str
    measurements: ev.Measurements | None
    provenance: ev.Provenance | None = None


@dataclass(frozen=True)
class Step:
    """A finished step of a version's plan."""

    name: str
    key: str
    result: Artifact
    file: Artifact | None
    seconds: float
    reused_from: ev.StepPlace | None = None
    conversion: ev.Conversion | None = None


@dataclass(frozen=True)
class Version:
    """One upload or update, and what became of it."""

    model: str
    number: int
    upload_id: str
    artifact: Artifact
    format: str
    tenant: str | None
    uploaded_ms: int
    state: VersionState = "uploaded"
    attempt: int = 0
    owner: str | None = None
    variants: Mapping[str, Variant] = field(default_factory=dict)
    rejections: tuple[Rejection, ...] = ()
    chosen: str | None = None
    code: str | None = None
    reason: str | None = None
    processing: Processing | None = None
    """The steps before and after the model, as declared at the upload."""
    optimization: Optimization | None = None
    parent: int | None = None
    """The version that an update was trained from. Until it is trained, `artifact` is the parent's."""
    training: Training | None = None
    steps: Mapping[str, Step] = field(default_factory=dict)
    """What is finished of its plan, by name; kept from one attempt to the next."""
    stalled: int = 0
    """Claims that were made since the last step was finished."""
    comparison: ev.Comparison | None = None
    runtime: RuntimeConfig | None = None
    """How workers run it."""
    recognised: str | None = None
    """The upload's format, where it is to be converted."""
    needs: tuple[str, ...] = ()
    """What an optimizer must have for that."""

    @property
    def program_format(self) -> str:
        """Which format of torch's own its file has, where torch serves it as it is."""
        return self.recognised or "pt2"

    @property
    def model_file(self) -> Artifact:
        """The version's model as one file: ONNX, as uploaded, converted or trained, or what torch runs as it is."""
        converted = self.steps.get(CANONICAL)
        return self.artifact if converted is None or converted.file is None else converted.file

    @property
    def is_open(self) -> bool:
        """Whether there is still something to do for it."""
        return self.state in ("uploaded", "optimizing")

    @property
    def why_not_promoted(self) -> str | None:
        """What speaks against promoting it; None if nothing does."""
        if self.state != "ready":
            return f"is {self.state}: only a ready version can be promoted"
        if self.parent is None:
            return None
        if self.comparison is None:
            return f"was never compared with version {self.parent}, which it was trained from"
        if self.comparison.worse:
            own, parents = self.comparison.own.value, self.comparison.parents.value
            found = f"{self.comparison.metric} {own:.4f}, not {parents:.4f}"
            return f"is worse than version {self.parent}, which it was trained from: {found}"
        return None

    @property
    def serving(self) -> Variant:
        """The variant that answers. Only for a version that is `ready`."""
        if self.chosen is None:
            raise ModelNotReady(f"version {self.number} of {self.model!r} has no variant yet")
        return self.variants[self.chosen]


@dataclass(frozen=True)
class Model:
    """All versions of a name, and which of them answer."""

    name: str
    versions: Mapping[int, Version] = field(default_factory=dict)
    uploads: Mapping[str, int | None] = field(default_factory=dict)
    """Version number by upload id; None where the number asked for was taken, or no number is left."""
    active: int | None = None
    previous: tuple[int, ...] = ()
    weights: Mapping[int, int] = field(default_factory=dict)
    retired: bool = False
    policy: Policy | None = None
    """What versions that say nothing else are judged by."""
    runtime: RuntimeConfig | None = None
    """How versions to come are run that bring nothing of their own."""
    exports: Mapping[str, Export] = field(default_factory=dict)
    """The newest, by id."""
    unloaded: bool = False
    """Nothing answers, on purpose, until it is loaded again. A new upload does not change that: it would undo what an
    operator did."""


@dataclass(frozen=True)
class Registry:
    """All models as of an offset of the log (the last one folded; -1 for the empty log)."""

    offset: int = -1
    models: Mapping[str, Model] = field(default_factory=dict)

    def model(self, name: str) -> Model:
        """The model.

        Raises:
            UnknownModel: nothing was ever uploaded under this name.
        """
        found = self.models.get(name)
        if found is None:
            raise UnknownModel(f"model {name!r} is not known")
        return found

    def version(self, name: str, number: int) -> Version:
        """A version in whatever state.

        Raises:
            UnknownModel, UnknownVersion: not in the log up to this offset.
        """
        found = self.model(name).versions.get(number)
        if found is None:
            raise UnknownVersion(f"model {name!r} has no version {number}")
        return found

    def route(self, name: str, request_id: str, number: int | None = None) -> Version:
        """The ready version that answers a request: a pure function of this registry and the request.

        Raises:
            UnknownModel, UnknownVersion: not in the log up to this offset.
            ModelRetired, ModelRejected: it answers no more, or never will.
            ModelNotReady: it may answer later.
            ModelNotLoaded: it answers once somebody loads it.
        """
        model = self.model(name)
        if model.retired:
            raise ModelRetired(f"model {name!r} is retired")
        if model.unloaded:
            raise ModelNotLoaded(f"model {name!r} is unloaded: POST /v2/repository/models/{name}/load brings it back")
        if number is None:
            number = _pick(model, request_id)
        if number is None:
            raise _nothing_serves(model)
        return _ready(self.version(name, number))


def _pick(model: Model, request_id: str) -> int | None:
    total = sum(model.weights.values())
    if not total:
        return model.active
    point = zlib.crc32(request_id.encode()) % total
    for number, weight in sorted(model.weights.items()):
        if point < weight:
            return number
        point -= weight
    raise AssertionError("the point lies below the total of the weights")


def _ready(version: Version) -> Version:
    what = f"version {version.number} of model {version.model!r}"
    match version.state:
        case "ready":
            return version
        case "retired":
            raise ModelRetired(f"{what} is retired")
        case "rejected":
            raise ModelRejected(f"{what} was rejected: {version.reason}")
        case _:
            raise ModelNotReady(f"{what} is {version.state}")


def _nothing_serves(model: Model) -> ModelRejected | ModelNotReady | ModelRetired:
    states = {version.state for version in model.versions.values()}
    if states & {"uploaded", "optimizing", "ready"}:
        return ModelNotReady(f"model {model.name!r} has no version that serves yet")
    if "rejected" in states:
        last = max((v for v in model.versions.values() if v.state == "rejected"), key=lambda v: v.number)
        return ModelRejected(f"version {last.number} of model {model.name!r} was rejected: {last.reason}")
    return ModelRetired(f"all versions of model {model.name!r} are retired")


def only_unloaded(registry: Registry) -> set[str]:
    """The digests of variants that belong to unloaded models alone: nobody needs them in memory."""
    unloaded = [model for model in registry.models.values() if model.unloaded]
    if not unloaded:
        return set()
    needed = {sha256 for model in registry.models.values() if not model.unloaded for sha256 in _digests(model)}
    return {sha256 for model in unloaded for sha256 in _digests(model)} - needed


def _digests(model: Model) -> set[str]:
    return {variant.artifact.sha256 for version in model.versions.values() for variant in version.variants.values()}


def finished(registry: Registry) -> dict[str, tuple[ev.StepPlace, Step]]:
    """Every finished step of every version by its key, with where it was done."""
    found: dict[str, tuple[ev.StepPlace, Step]] = {}
    for model in registry.models.values():
        for version in model.versions.values():
            for step in version.steps.values():
                here = ev.StepPlace(model=version.model, version=version.number, step=step.name)
                found.setdefault(step.key, (step.reused_from or here, step))
    return found


# --------------------------------------------------------------------------- the fold


def fold(registry: Registry, entry: Entry) -> Registry:
    """The registry after one more record."""
    event = entry.event
    if not isinstance(event, ev.ModelEvent):
        return replace(registry, offset=entry.offset)
    before = registry.models.get(event.model)
    after = _fold_model(before, event, entry.timestamp_ms)
    if after is None or after is before:
        return replace(registry, offset=entry.offset)
    return Registry(offset=entry.offset, models={**registry.models, event.model: after})


def as_of(entries: Iterable[Entry], time_ms: int) -> Registry:
    """The registry at a moment: all that the broker had stamped by `time_ms` (ms since the epoch)."""
    registry = Registry()
    for entry in entries:
        if entry.timestamp_ms > time_ms:
            break
        registry = fold(registry, entry)
    return registry


def _fold_model(model: Model | None, event: ev.ModelEvent, timestamp_ms: int) -> Model | None:
    if isinstance(event, ev.ModelUploaded):
        return _uploaded(model or Model(event.model), event, timestamp_ms)
    if model is None:
        return None
    match event:
        case ev.UpdateRequested():
            return _updated(model, event, timestamp_ms)
        case ev.AttemptEvent():
            return _attempt(model, event)
        case ev.OptimizationCancelled(version=number, reason=reason):
            return _cancel(model, number, reason)
        case ev.PolicySet(policy=policy):
            return model if policy == model.policy else replace(model, policy=policy)
        case ev.RuntimeConfigured():
            return _configure(model, event)
        case export_events.ExportRequested(version=number):
            version = model.versions.get(number)
            return replace(model, exports=exports.requested(model.exports, event, version, timestamp_ms))
        case export_events.ExportEvent():
            return replace(model, exports=exports.attempted(model.exports, event))
        case _:
            return _routed(model, event)


def _routed(model: Model, event: ev.ModelEvent) -> Model:
    """What changes which versions answer."""
    match event:
        case ev.ModelPromoted(version=number):
            return _promote(model, number) if _may_be_promoted(model, number) else model
        case ev.TrafficSplit(weights=weights):
            served = all(_is_ready(model, number) for number, weight in weights.items() if weight)
            return replace(model, weights=weights) if served else model
        case ev.ModelRolledBack():
            return _roll_back(model)
        case ev.ModelRetired(version=number):
            return _retire(model, number)
        case ev.ModelUnloaded():
            return model if model.unloaded else replace(model, unloaded=True)
        case ev.ModelLoaded():
            return replace(model, unloaded=False) if model.unloaded else model
        case _:
            return model


def _uploaded(model: Model, event: ev.ModelUploaded, timestamp_ms: int) -> Model:
    def version(number: int) -> Version:
        return Version(
            model=model.name,
            number=number,
            upload_id=event.upload_id,
            artifact=event.artifact,
            format=event.format,
            tenant=event.tenant,
            uploaded_ms=timestamp_ms,
            processing=event.processing,
            optimization=event.optimization,
            runtime=event.runtime or model.runtime,
        )

    after = _numbered(model, event, version)
    return after if after is model or after.versions is model.versions else replace(after, retired=False)


def _updated(model: Model, event: ev.UpdateRequested, timestamp_ms: int) -> Model:
    """A version that begins with its parent's file; none, if the parent is not ready."""
    parent = model.versions.get(event.parent)
    if event.upload_id not in model.uploads and (parent is None or parent.state != "ready"):
        return replace(model, uploads={**model.uploads, event.upload_id: None})

    def version(number: int) -> Version:
        assert parent is not None  # noqa: S101 - for the type checker: looked at above
        return replace(
            Version(
                model=model.name,
                number=number,
                upload_id=event.upload_id,
                artifact=parent.model_file,
                format=parent.format,
                tenant=event.tenant,
                uploaded_ms=timestamp_ms,
            ),
            processing=parent.processing,
            optimization=event.optimization,
            parent=event.parent,
            training=event.training,
            runtime=parent.runtime,
        )

    return _numbered(model, event, version)


def _numbered(model: Model, event: ev.ModelUploaded | ev.UpdateRequested, version: Callable[[int], Version]) -> Model:
    """The model with one more version, under the number asked for or the next."""
    if event.upload_id in model.uploads:
        return model  # the same one, told twice
    number = event.requested_version or max(model.versions, default=0) + 1
    if number in model.versions or number > ev.MAX_VERSION:
        return replace(model, uploads={**model.uploads, event.upload_id: None})
    return replace(
        model,
        versions={**model.versions, number: version(number)},
        uploads={**model.uploads, event.upload_id: number},
    )


def _cancel(model: Model, number: int, reason: str) -> Model:
    version = model.versions.get(number)
    if version is None or not version.is_open:
        return model
    return _with(model, replace(version, state="rejected", code=CANCELLED, reason=reason or "it was cancelled"))


def _configure(model: Model, event: ev.RuntimeConfigured) -> Model:
    """One version, or all of them and those to come."""
    if event.version is not None and event.version not in model.versions:
        return model

    def configured(version: Version) -> Version:
        variants = {name: replace(variant, runtime=event.config) for name, variant in version.variants.items()}
        return replace(version, runtime=event.config, variants=variants)

    numbers = model.versions if event.version is None else (event.version,)
    versions = {**model.versions, **{number: configured(model.versions[number]) for number in numbers}}
    return replace(model, versions=versions, runtime=event.config if event.version is None else model.runtime)


def _attempt(model: Model, event: ev.AttemptEvent) -> Model:
    version = model.versions.get(event.version)
    if version is None or not version.is_open:
        return model
    if isinstance(event, ev.OptimizationClaimed):
        if event.attempt != version.attempt + 1:
            return model  # another claim of this attempt came first
        started = replace(version, state="optimizing", variants={}, rejections=(), stalled=version.stalled + 1)
        return _with(model, replace(started, attempt=event.attempt, owner=event.owner))
    if (event.attempt, event.owner) != (version.attempt, version.owner):
        return model  # a result of a superseded attempt
    match event:
        case ev.FormatRecognised() | ev.StepFinished():
            return _with(model, _further(version, event))
        case ev.VariantReady():
            variant = _variant(version, event)
            return _with(model, replace(version, variants={**version.variants, event.variant: variant}))
        case ev.VariantRejected():
            rejection = Rejection(event.variant, event.reason, event.measurements, event.provenance)
            return _with(model, replace(version, rejections=(*version.rejections, rejection)))
        case ev.ModelRejected():
            return _with(model, replace(version, state="rejected", code=event.code, reason=event.reason))
        case ev.ModelReady() if event.variant in version.variants:
            comparison = event.comparison if version.parent is not None else None
            ready = replace(version, state="ready", chosen=event.variant, reason=event.reason, comparison=comparison)
            model = _with(model, ready)
            first = model.active is None and ready.why_not_promoted is None
            return _promote(model, ready.number) if first else model
        case _:
            return model


def _variant(version: Version, event: ev.VariantReady) -> Variant:
    return Variant(
        event.variant,
        event.artifact,
        event.signature,
        event.batch_cap,
        event.measurements,
        version.processing,
        None if version.processing is None else processing_sha256(version.processing),
        event.provenance,
        event.reason,
        event.engine,
        version.runtime,
    )


def _further(version: Version, event: ev.FormatRecognised | ev.StepFinished) -> Version:
    """The version with one thing more known of it."""
    return _step_finished(version, event) if isinstance(event, ev.StepFinished) else _recognised(version, event)


def _recognised(version: Version, event: ev.FormatRecognised) -> Version:
    known = replace(version, recognised=event.format, needs=event.needs)
    return replace(known, state="uploaded", owner=None, stalled=0) if event.handed_on else known


def _step_finished(version: Version, event: ev.StepFinished) -> Version:
    if event.step in version.steps:
        return version
    step = Step(event.step, event.key, event.result, event.file, event.seconds, event.reused_from, event.conversion)
    artifact = event.file if event.step == TRAIN and version.parent is not None else None
    steps = {**version.steps, step.name: step}
    return replace(version, steps=steps, stalled=0, artifact=artifact or version.artifact)


def _with(model: Model, version: Version) -> Model:
    return replace(model, versions={**model.versions, version.number: version})


def _is_ready(model: Model, number: int) -> bool:
    version = model.versions.get(number)
    return version is not None and version.state == "ready"


def _may_be_promoted(model: Model, number: int) -> bool:
    version = model.versions.get(number)
    return version is not None and version.why_not_promoted is None


def _promote(model: Model, number: int) -> Model:
    if model.active == number and not model.weights:
        return model
    previous = model.previous if model.active in (None, number) else (*model.previous, model.active)
    return replace(model, active=number, previous=tuple(p for p in previous if p is not None), weights={})


def _roll_back(model: Model) -> Model:
    """To the last other version that was active before and is still ready; a split ends first."""
    if model.weights:
        return replace(model, weights={})
    previous = list(model.previous)
    while previous:
        number = previous.pop()
        if number != model.active and _is_ready(model, number):
            return replace(model, active=number, previous=tuple(previous))
    return model


def _retire(model: Model, number: int | None) -> Model:
    if number is None:
        retired = {n: replace(v, state="retired") for n, v in model.versions.items()}
        return replace(model, versions=retired, active=None, previous=(), weights={}, retired=True)
    if number not in model.versions:
        return model
    model = _with(model, replace(model.versions[number], state="retired"))
    weights = {n: w for n, w in model.weights.items() if n != number}
    if model.active == number:
        back = _roll_back(replace(model, weights={}))
        model = back if back.active != number else replace(model, active=None)
    return replace(model, weights=weights)
