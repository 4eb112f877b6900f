"""What a step of a plan does, as data: it travels to the child, into the step's key, and into the provenance.

A step starts from a file: the upload, or what another step made (`base`). Quantization is described by the recipes'
own configs; what trains has its description here.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from services.optimizer.recipes.configs import DynamicInt8, Fp16, StaticQdq, WeightOnly
from shared.events import MachineClass
from shared.optimization import LoggedRequests, Training
from shared.runtime_config import ONNXRUNTIME

STEP_NAME: Final = r"\A[a-z0-9][a-z0-9.-]{0,79}\Z"
EngineName = Literal["onnxruntime", "torch"]
StepName = Annotated[str, Meta(pattern=STEP_NAME)]
UPLOAD: Final = "upload"
"""The base of what starts from the version's own file."""
REFERENCE: Final = "fp32"
COMPARE: Final = "compare"
INPUTS: Final = "inputs"
ELSEWHERE: Final = "elsewhere"


class Refer(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="kind",
    tag="reference",
):
    """Vet the file, read its signature, find its batch axes, measure it: what all candidates are held against."""

    engine: EngineName = ONNXRUNTIME
    """What runs it: torch, if it is an upload that did not become ONNX."""


class Convert(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="convert"):
    """Make one ONNX file of an upload of another format, and run both side by side."""

    format: Annotated[str, Meta(max_length=40)]


class Draw(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="draw"):
    """Read requests from the log and make a data set of them. Done by the service: the child knows no Kafka."""

    source: LoggedRequests

    @property
    def is_pinned(self) -> bool:
        """Whether the source says by offsets where it begins and ends: then the same records come out again."""
        return self.source.from_offsets is not None and self.source.until_offsets is not None


class Sensitive(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="sensitive"):
    """Quantize with the nodes that it hurts most left in fp32: as few as reach the least cosine."""

    min_cosine: float = 0.999


class Prune(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="prune"):
    """Remove the least important channels, heads and neurons, and train what is left to answer as before."""

    share: Annotated[float, Meta(gt=0, lt=1)]
    epochs: Annotated[int, Meta(ge=0, le=10_000)] = 8


class Sparsify(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="sparsify"):
    """Set the smallest weights to zero. ONNX Runtime multiplies zeros as well: it gives compressed size, never time."""

    share: Annotated[float, Meta(gt=0, lt=1)]


class Distil(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="distil"):
    """Train a smaller model of the same kind on the answers of this one."""

    width: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    """The share of channels and neurons that the student has."""
    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 60


class Train(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="train"):
    """An update's training, from the parent's file."""

    training: Training


class Compare(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="compare"):
    """Hold an update against its parent on the rows that are held out."""


class Sample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="sample"):
    """Make the inputs that workers of other classes are to measure with."""


class Elsewhere(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="elsewhere"):
    """Have workers of other classes measure what passed on quality. Asked for by the service, over Kafka."""

    machines: tuple[MachineClass, ...]
    here: bool = False
    """Workers of the optimizer's own class are up as well: what was measured here counts, too."""


Quantize = WeightOnly | StaticQdq | DynamicInt8 | Fp16
Action = (
    Draw | Convert | Refer | Quantize | Sensitive | Prune | Sparsify | Distil | Train | Compare | Sample | Elsewhere
)
TRAINING: Final = (Prune, Distil, Train)
"""What needs torch."""


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A step: its name, what it does, and which step's file it starts from."""

    name: StepName
    action: Action
    base: Annotated[str, Meta(max_length=80)] = UPLOAD
