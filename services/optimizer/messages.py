"""What passes between the service and its sandboxed child: one job in on stdin, JSON lines out on stdout.

The child ran a file that may be hostile, so the service reads its lines as untrusted input: their number and length
are bounded (`confined`), and every field is validated here. Files are not named in messages: a variant's file is
`variant_file(variant)` in the job's directory.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, json

from services.optimizer.rejections import ADVICE
from shared.events import Measurements
from shared.signature import Signature

MAX_LINE_BYTES: Final = 512 * 1024
"""A signature with the most tensors, the longest names and the highest ranks that vetting allows is below it."""
MAX_LINES: Final = 1000
UNUSABLE_EXIT: Final = 78
"""The child can't do any job here (EX_CONFIG of sysexits.h): a library is missing. Not the model's fault."""

UPLOAD_FILE: Final = "upload"
REFERENCE: Final = "fp32"
Variant = Literal["fp32", "int8-weight-only"]
CANDIDATES: Final[tuple[Variant, ...]] = ("int8-weight-only",)
"""What is built beside the reference, in this order."""


def variant_file(variant: Variant) -> str:
    """The name of a variant's file in the job's directory."""
    return f"{variant}.onnx"


def tokenizer_file(index: int) -> str:
    """The name of a tokenizer's file there."""
    return f"tokenizer-{index}.json"


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child sets for itself before it opens the file; see setrlimit(2)."""

    address_space_bytes: int
    cpu_s: int
    file_bytes: int
    open_files: int = 256
    niceness: int = 5


class Job(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child is to do, in its working directory. `probe`: only say what it is."""

    kind: Literal["probe", "optimize"]
    parent_pid: int
    limits: Limits
    threads: int
    batch_cap: int
    max_batch_run_s: float
    run_timeout_s: float
    search_budget_s: float
    """Once this time is over and the model has run at all, it is taken as it is: one request per run."""
    candidates_budget_s: float
    """A candidate that can't be measured within this time is rejected, so that fp32 is not lost with it."""
    seed: int = 0
    tokenizers: int = 0
    """How many lie in the directory, to be vetted with the model."""


class _Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What the child says; `kind` tells which message it is."""


class Probed(_Message, frozen=True, kw_only=True, tag="probed"):
    """What the child is and can reach."""

    onnxruntime: Annotated[str, Meta(max_length=50)]
    isa: Annotated[str, Meta(max_length=100)]
    providers: Annotated[tuple[Annotated[str, Meta(max_length=100)], ...], Meta(max_length=20)]
    networks: Annotated[tuple[Annotated[str, Meta(max_length=100)], ...], Meta(max_length=1000)]
    """Names of its network interfaces; `lo` alone if it is cut off."""


class Progress(_Message, frozen=True, kw_only=True, tag="progress"):
    """The step that begins now, and the share of the work that is behind it."""

    step: Annotated[str, Meta(max_length=50)]
    fraction: Annotated[float, Meta(ge=0, le=1)]


class Rejected(_Message, frozen=True, kw_only=True, tag="rejected"):
    """The model can't be served."""

    code: Annotated[str, Meta(max_length=50)]
    found: Annotated[str, Meta(max_length=4000)]

    def __post_init__(self) -> None:
        if self.code not in ADVICE:
            raise ValueError(f"unknown code {self.code!r}")


class Candidate(_Message, frozen=True, kw_only=True, tag="candidate"):
    """A variant was built and measured; its file is complete. `fp32` comes first."""

    variant: Variant
    signature: Signature
    batch_cap: Annotated[int, Meta(ge=1, le=1024)]
    measurements: Measurements

    def __post_init__(self) -> None:
        # What goes to the log must be printable as JSON, which has no NaN: msgspec would write null.
        found = self.measurements
        optional = (found.max_abs_error, found.cosine, found.top1_agreement, found.speedup)
        numbers = [number for number in optional if number is not None]
        if not all(math.isfinite(number) for number in (*numbers, *(latency.p50_s for latency in found.latencies))):
            raise ValueError("a measurement is not a finite number")


class CandidateRejected(_Message, frozen=True, kw_only=True, tag="candidate_rejected"):
    """A variant did not build, load or run."""

    variant: Variant
    reason: Annotated[str, Meta(max_length=4000)]


Message = Probed | Progress | Rejected | Candidate | CandidateRejected
MESSAGE: Final[json.Decoder[Message]] = json.Decoder(Message)
