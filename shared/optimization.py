"""What an uploader or updater may ask of the optimizer: data, policy, candidates, training. Data, not code.

`Optimization` travels in `ModelUploaded` and `UpdateRequested` and belongs to the version for ever; `Policy` may also
be set for a model. Whatever is not said is the optimizer's to choose. An unknown field is refused, unlike in events: an
option that is ignored would give another model than was asked for.

A data set has an array for each of the model's inputs, by its name, with rows along axis 0, and where there is ground
truth an array `label` (one class a row) or one by the name of an output. From one set a seeded part is held out: what
a candidate is judged by it was not trained or calibrated on. `evaluation` is a set of its own for that.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from shared.artifacts import Artifact
from shared.errors import InvalidInput

MAX_OPTIONS_BYTES: Final = 64 * 1024
"""As JSON."""
MAX_DATA_ROWS: Final = 1_000_000
_MAX_EPOCHS: Final = 10_000
_MAX_TRIALS: Final = 1000
_DAY_S: Final = 24 * 3600
_MODEL_NAME: Final = r"\A[A-Za-z0-9][A-Za-z0-9-]{0,99}\Z"  # that of `shared.events`, which imports this

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
NotNegative = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
ModelName = Annotated[str, Meta(pattern=_MODEL_NAME)]
Version = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Patterns = Annotated[tuple[Name, ...], Meta(max_length=1000)]
"""Names of weights, where `*`, `?` and `[…]` match as in a shell."""
OffsetMap = dict[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


class DataFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="file"):
    """A file in the artifact store: a NumPy `.npz` without objects, or Parquet. Its first bytes tell which."""

    artifact: Artifact


class LoggedRequests(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="log"):
    """Requests that were made of a model, as its topics still have them.

    From `from_ms` until before `until_ms` (ms since the epoch, by the records' timestamps), or by partition from
    `from_offsets` until before `until_offsets`; what is left open is all there is. `labels` says where ground truth
    comes from: `feedback` on those requests, the `results` that were given, or the `teacher`: the version that is
    optimized or updated, asked again.
    """

    model: ModelName | None = None
    """Whose requests; None: those of the model itself."""
    from_ms: Annotated[int, Meta(ge=0)] | None = None
    until_ms: Annotated[int, Meta(ge=0)] | None = None
    from_offsets: OffsetMap | None = None
    until_offsets: OffsetMap | None = None
    max_rows: Annotated[int, Meta(ge=1, le=MAX_DATA_ROWS)] = 10_000
    labels: Literal["feedback", "results", "teacher"] = "teacher"


Data = DataFile | LoggedRequests

Objective = Literal["latency", "throughput", "size", "memory"]


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate must reach to serve, and which of those that do is the best. None: as the optimizer is set."""

    objective: Objective | None = None
    """The time of a run, the rows a second, the bytes of the file, or those in memory."""
    max_loss: Share | None = None
    """How much worse than the reference the task's metric may be: 0.01 is one point. Without labels: for what share of
    rows another class may be the best."""
    min_cosine: Share | None = None
    """Without labels, of answers that are no scores: how similar they must be."""
    min_gain: Annotated[float, Meta(ge=1, le=1000)] | None = None
    """How many times better than the reference it must be, in the objective, to be worth it."""
    proof: Literal["estimate", "interval"] | None = None
    """Whether the measured loss must be allowed, or all of its 95% interval."""
    time_budget_s: Annotated[float, Meta(gt=0, le=30 * _DAY_S)] | None = None
    """For all candidates and training together; what is not done by then is not tried."""

    def over(self, default: Policy) -> Policy:
        """This policy, with what it leaves open as in another."""
        mine = {field: value for field in self.__struct_fields__ if (value := getattr(self, field)) is not None}
        return msgspec.structs.replace(default, **mine)


class Search(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Look for the learning rate and the weight decay that do best on the held-out part, then train with them."""

    trials: Annotated[int, Meta(ge=1, le=_MAX_TRIALS)] = 8
    budget_s: Annotated[float, Meta(gt=0, le=30 * _DAY_S)] | None = None
    """No trial begins after it."""


class WarmStart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights of another version, taken over where name and shape match."""

    model: ModelName
    version: Version


class Training(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an update is trained."""

    loss: Literal["auto", "cross_entropy", "soft_cross_entropy", "mse", "cosine"] = "auto"
    """`auto`: what fits the labels or, without labels, the answers that are learnt."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 1e-3
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Meta(ge=0, le=10)] = 0.0
    schedule: Literal["constant", "cosine", "steps"] = "cosine"
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """The share of all steps in which the learning rate rises."""
    clip_norm: Annotated[float, Meta(gt=0, le=1e9)] | None = 1.0
    epochs: Annotated[int, Meta(ge=1, le=_MAX_EPOCHS)] | None = None
    """None: 10, and more where there are few rows, since it is steps that teach."""
    batch_rows: Annotated[int, Meta(ge=1, le=65_536)] = 32
    held_out: Annotated[float, Meta(ge=0, le=0.9)] | None = None
    """Of the rows to train on: training keeps the epoch that is best on these. None: a fifth where there are many, and
    of few rows none, as a handful tells good epochs from bad ones no better than chance."""
    patience: Annotated[int, Meta(ge=1, le=_MAX_EPOCHS)] | None = 5
    """Epochs without a better result on those before training stops; None: never."""
    train: Patterns = ("*",)
    """Only weights whose names match one of these are trained."""
    freeze: Patterns = ()
    """Weights that stay as they are."""
    classes: Annotated[int, Meta(ge=2, le=100_000)] | None = None
    """A new head, freshly drawn, for so many classes."""
    warm_start: WarmStart | None = None
    search: Search | None = None

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")


class Optimization(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of an upload or an update."""

    data: Data | None = None
    """To calibrate, heal, distil and train with; what is judged is held out of it unless `evaluation` is there."""
    evaluation: Data | None = None
    holdout: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    policy: Policy | None = None
    candidates: Annotated[tuple[Name, ...], Meta(max_length=100)] | None = None
    """The names of what is to be tried; None: what makes sense. `()` is the reference alone."""
    seed: Seed = 0

    @property
    def sources(self) -> dict[str, Data]:
        """The data sets that are named, by what they are for."""
        named = {"data": self.data, "evaluation": self.evaluation}
        return {role: source for role, source in named.items() if source is not None}


class Update(Optimization, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `POST …/update` takes: which version is trained on, and how."""

    parent: Version | None = None
    """None: the one that answers now."""
    training: Training = msgspec.field(default_factory=Training)


def parse(kind: type[Any], text: bytes) -> Any:
    """JSON of a caller as one of the types above.

    Raises:
        InvalidInput: it is too long, no JSON, or not of that type; the sentence says where.
    """
    if len(text) > MAX_OPTIONS_BYTES:
        raise InvalidInput(f"options have up to {MAX_OPTIONS_BYTES} bytes")
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as err:
        problem, _, where = str(err).partition(" - at ")
        raise InvalidInput(f"{where.strip('`$.') or 'the options'}: {problem}") from err
