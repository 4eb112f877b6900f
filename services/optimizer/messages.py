"""What passes between the service and its sandboxed child: one job in on stdin, JSON lines out on stdout.

The child ran a file that may be hostile, so the service reads its lines as untrusted input: their number and length
are bounded (`confined`), and every field is validated here. Files are not named in messages: what a step made is
`step_file(step)` in the job's directory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta, Struct, json

from services.optimizer.actions import EngineName, Spec, StepName
from services.optimizer.rejections import ADVICE
from shared.confine import Limits
from shared.events import Conversion, Latency, MachineClass, Measurements
from shared.export_events import Parity
from shared.quality.estimates import Comparison
from shared.runtime_config import ONNXRUNTIME
from shared.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE_BYTES: Final = 512 * 1024
"""A signature with the most tensors, the longest names and the highest ranks that vetting allows is below it."""
MAX_LINES: Final = 20_000
"""Most of them points of curves."""
UNUSABLE_EXIT: Final = 78
"""The child can't do any job here (EX_CONFIG of sysexits.h): a library is missing. Not the model's fault."""

UPLOAD_FILE: Final = "upload"
PARENT_FILE: Final = "parent"
"""Of an update: what it is trained from and compared with."""
WARM_START_FILE: Final = "warm-start"
"""Of an update: whose weights it may begin with."""


EXPORT_FILE: Final = "export"
"""What an export gave."""


def step_file(step: str) -> str:
    """The name of the file that a step made, in the job's directory."""
    return f"{step}.onnx"


def data_file(role: str) -> str:
    """The name of a data set's file there."""
    return f"data-{role}"


def tokenizer_file(index: int) -> str:
    """The name of a tokenizer's file there."""
    return f"tokenizer-{index}.json"


class Batched(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was found out about running a model; see `sandbox.batching.Batching`."""

    sizes: Annotated[dict[str, int], Meta(max_length=1000)]
    highs: Annotated[dict[str, int], Meta(max_length=1000)] = {}
    inputs: Annotated[dict[str, int | None], Meta(max_length=100)]
    outputs: Annotated[tuple[int, ...], Meta(max_length=100)] | None = None
    cap: Annotated[int, Meta(ge=1, le=1024)] = 1


class Job(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child is to do, in its working directory. `probe`: only say what it is."""

    kind: Literal["probe", "steps", "export"]
    parent_pid: int
    limits: Limits
    threads: int
    batch_cap: int
    max_batch_run_s: float
    run_timeout_s: float
    search_budget_s: float
    """Once this time is over and the model has run at all, it is taken as it is: one request per run."""
    seed: int = 0
    tokenizers: int = 0
    """How many lie in the directory, to be vetted with the model."""
    steps: tuple[Spec, ...] = ()
    """What is left to do, in this order."""
    batched: Batched | None = None
    """Of the reference, if its step is done."""
    data: dict[str, int] = {}
    """The data sets that lie in the directory, by role."""
    training_budget_s: float | None = None
    """Training in one step ends after so long, with what was best until then."""
    checkpoint_s: float = 30.0
    """How often training tells how far it is, so that another child can go on there."""
    checkpoint: str | None = None
    """The step whose file is the newest state of the training that is left."""
    trials: tuple[str, ...] = ()
    """Trials of the search that is left, as JSON."""
    export: Literal["pt2", "torchscript", "savedmodel"] | None = None
    """The format that the file is wanted in, without any steps."""
    about: str = "{}"
    """JSON that is to lie in the export."""
    holdout: float = 0.25
    """The share of the data set `data` that is judged by, if there is no `evaluation`."""


class OnClass(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker of another class measured; or why none did."""

    machine: MachineClass
    worker: Annotated[str, Meta(max_length=200)] = ""
    latencies: Annotated[dict[str, tuple[Latency, ...]], Meta(max_length=100)] = {}
    problems: Annotated[dict[str, str], Meta(max_length=100)] = {}
    """Of candidates that do not run there."""
    failed: Annotated[str, Meta(max_length=4000)] = ""


class Served(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """On which classes of worker the candidates are judged by their speed."""

    here: bool = True
    """The optimizer's own."""
    classes: Annotated[tuple[OnClass, ...], Meta(max_length=20)] = ()


class _Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What the child says; `kind` tells which message it is."""


class Probed(_Message, frozen=True, kw_only=True, tag="probed"):
    """What the child is and can reach."""

    onnxruntime: Annotated[str, Meta(max_length=50)]
    isa: Annotated[str, Meta(max_length=100)]
    providers: Annotated[tuple[Annotated[str, Meta(max_length=100)], ...], Meta(max_length=20)]
    networks: Annotated[tuple[Annotated[str, Meta(max_length=100)], ...], Meta(max_length=1000)]
    """Names of its network interfaces; `lo` alone if it is cut off."""
    tools: Annotated[dict[str, Annotated[str, Meta(max_length=100)]], Meta(max_length=50)] = {}
    """Versions by library. Without `torch` nothing can be trained here."""
    landlock: Annotated[int, Meta(ge=0, le=1000)] = 0
    """The version of the kernel's Landlock that keeps files and TCP from it; 0: it may read what its user may."""


class Progress(_Message, frozen=True, kw_only=True, tag="progress"):
    """What begins now within a step, how much of the step is behind it, and the newest points of curves."""

    step: StepName
    what: Annotated[str, Meta(max_length=100)] = ""
    fraction: Annotated[float, Meta(ge=0, le=1)] = 0.0
    points: Annotated[dict[Annotated[str, Meta(max_length=100)], tuple[int, float]], Meta(max_length=32)] = {}

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for _, value in self.points.values()):
            raise ValueError("a point is not a finite number")


class Rejected(_Message, frozen=True, kw_only=True, tag="rejected"):
    """The model can't be served."""

    code: Annotated[str, Meta(max_length=50)]
    found: Annotated[str, Meta(max_length=4000)]

    def __post_init__(self) -> None:
        if self.code not in ADVICE:
            raise ValueError(f"unknown code {self.code!r}")


class Recognised(_Message, frozen=True, kw_only=True, tag="recognised"):
    """The upload is not ONNX as it is, but can be converted: a plan with that step comes next. Nothing follows."""

    format: Annotated[str, Meta(max_length=40)]


class Found(_Message, frozen=True, kw_only=True, tag="found"):
    """A step is done, and this is all that is known of it: what it built and measured, or why it did not.

    If there are `measurements`, its file is complete. This is also the document that is kept of the step.
    """

    step: StepName
    failed: Annotated[str, Meta(max_length=4000)] | None = None
    signature: Signature | None = None
    batch_cap: Annotated[int, Meta(ge=1, le=1024)] = 1
    measurements: Measurements | None = None
    comparisons: Annotated[tuple[Comparison, ...], Meta(max_length=500)] = ()
    """What it lost against the reference, by output and metric."""
    batched: Batched | None = None
    parameters: Annotated[str, Meta(max_length=16_384)] = "{}"
    """What was done, as JSON, as far as the step itself chose it."""
    rows: Annotated[dict[str, int], Meta(max_length=10)] = {}
    """How many of each data set were used."""
    served: Served | None = None
    """Of the step that asks workers."""
    file: bool = False
    """The step made a file that is no candidate, such as trained weights."""
    conversion: Conversion | None = None
    """Of what was uploaded."""
    engine: EngineName = ONNXRUNTIME
    """What runs the file."""

    def __post_init__(self) -> None:
        # What goes to the log must be printable as JSON, which has no NaN: msgspec would write null.
        if not all(math.isfinite(number) for number in _numbers(self)):
            raise ValueError("a measurement is not a finite number")
        if self.measurements is not None and self.signature is None:
            raise ValueError("a candidate has a signature")


class Exported(_Message, frozen=True, kw_only=True, tag="exported"):
    """The export lies in the directory, and gave these answers when it was loaded again."""

    parity: Annotated[tuple[Parity, ...], Meta(min_length=1, max_length=20)]

    def __post_init__(self) -> None:
        if not all(math.isfinite(each.max_abs_error) and each.max_abs_error <= each.tolerance for each in self.parity):
            raise ValueError("the export was not refused for its answers")


Message = Probed | Progress | Rejected | Recognised | Found | Exported
MESSAGE: Final[json.Decoder[Message]] = json.Decoder(Message)


def _numbers(found: Found) -> Iterator[float]:
    compared = [(each.candidate, each.reference, each.loss) for each in found.comparisons]
    estimates: list[Any] = [each for three in compared for each in three if each is not None]
    if (converted := found.conversion) is not None:
        yield from (converted.max_abs_error, converted.rtol, converted.atol)
    if (measured := found.measurements) is not None:
        optional = (
            measured.max_abs_error,
            measured.cosine,
            measured.top1_agreement,
            measured.speedup,
            measured.throughput_rows_s,
        )
        yield from (number for number in optional if number is not None)
        yield from (latency.p50_s for latency in measured.latencies)
        estimates += measured.quality.values()
    for estimate in estimates:
        yield from (estimate.value, estimate.low, estimate.high)
