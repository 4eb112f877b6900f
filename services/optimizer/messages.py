"""What passes between the service and its sandboxed child: one job in on stdin, JSON lines out on stdout.

The child ran a file that may be hostile, so the service reads its lines as untrusted input: their number and length
are bounded (`confined`), and every field is validated here. Files are not named in messages: a variant's file is
`variant_file(variant)` in the job's directory.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """What the child sets for itself before it opens the file; see setrlimit(2)."""

    address_space_bytes: int
    cpu_s: int
    file_bytes: int
    open_files: int = 256
    niceness: int = 5


class Job(_Frozen):
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


class Probed(_Frozen):
    """What the child is and can reach."""

    kind: Literal["probed"] = "probed"
    onnxruntime: Annotated[str, Field(max_length=50)]
    isa: Annotated[str, Field(max_length=100)]
    providers: Annotated[tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=20)]
    networks: Annotated[tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=1000)]
    """Names of its network interfaces; `lo` alone if it is cut off."""


class Progress(_Frozen):
    """The step that begins now, and the share of the work that is behind it."""

    kind: Literal["progress"] = "progress"
    step: Annotated[str, Field(max_length=50)]
    fraction: Annotated[float, Field(ge=0, le=1)]


class Rejected(_Frozen):
    """The model can't be served."""

    kind: Literal["rejected"] = "rejected"
    code: Annotated[str, Field(max_length=50)]
    found: Annotated[str, Field(max_length=4000)]

    @field_validator("code")
    @classmethod
    def _is_known(cls, code: str) -> str:
        if code not in ADVICE:
            raise ValueError(f"unknown code {code!r}")
        return code


class Candidate(_Frozen):
    """A variant was built and measured; its file is complete. `fp32` comes first."""

    kind: Literal["candidate"] = "candidate"
    variant: Variant
    signature: Signature
    batch_cap: Annotated[int, Field(ge=1, le=1024)]
    measurements: Measurements

    @model_validator(mode="after")
    def _is_finite(self) -> Self:
        # What goes to the log must be printable as JSON, which has no NaN.
        found = self.measurements
        optional = (found.max_abs_error, found.cosine, found.top1_agreement, found.speedup)
        numbers = [number for number in optional if number is not None]
        if not all(math.isfinite(number) for number in (*numbers, *(latency.p50_s for latency in found.latencies))):
            raise ValueError("a measurement is not a finite number")
        return self


class CandidateRejected(_Frozen):
    """A variant did not build, load or run."""

    kind: Literal["candidate_rejected"] = "candidate_rejected"
    variant: Variant
    reason: Annotated[str, Field(max_length=4000)]


Message = Probed | Progress | Rejected | Candidate | CandidateRejected
MESSAGE: Final[TypeAdapter[Message]] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])
