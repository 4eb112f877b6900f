"""What can be asked for, as data: with the model and the calibration rows, a config says all of what was built.

Configs are tagged msgspec structs, so they travel as JSON (`kind` names the class) and are kept as provenance.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=1000)]
Nodes = Annotated[tuple[Name, ...], Meta(max_length=10_000)]
"""Names of nodes in the prepared graph (`ort_tools.prepared`), which are the same each time it is prepared."""


class _Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all of them say of themselves."""

    @property
    def needs_rows(self) -> bool:
        """Whether calibration rows are looked at."""
        return False

    @property
    def may_batch(self) -> bool:
        """False if by construction a row's answer depends on the rows beside it: batch cap 1, whatever tests find."""
        return True


class WeightOnly(_Config, frozen=True, kw_only=True, tag="weight-only"):
    """Constant matrices as INT8 or INT4, activations in fp32: `MatMulNBits`.

    A block of `block_size` numbers of a column shares a scale; a smaller block is closer to fp32 and takes more bytes.
    """

    bits: Literal[4, 8]
    block_size: Literal[16, 32, 64, 128, 256] = 128


class StaticQdq(_Config, frozen=True, kw_only=True, tag="static-qdq"):
    """Weights and activations as INT8, with the ranges of activations taken from calibration rows: QDQ format.

    Weights are signed and symmetric. u8 activations are what x86 multiplies fast; s8 ones are what ARM does.

    Raises:
        ValueError: `percentile` is given for another method.
    """

    method: Literal["minmax", "percentile", "entropy"] = "minmax"
    percentile: Annotated[float, Meta(gt=50, le=100)] | None = None
    """Of the method of that name: the share of values, in percent, that the range holds. None: 99.999."""
    operators: Literal["all", "products"] = "all"
    """All that ONNX Runtime has integer kernels for, or only Conv, MatMul and Gemm."""
    activations: Literal["u8", "s8"] = "u8"
    per_channel: bool = True
    exclude: Nodes = ()
    """Nodes that stay in fp32."""

    def __post_init__(self) -> None:
        if self.percentile is not None and self.method != "percentile":
            raise ValueError(f"percentile={self.percentile:g} says nothing for method={self.method!r}")

    @property
    def needs_rows(self) -> bool:
        """The ranges come from them."""
        return True


class DynamicInt8(_Config, frozen=True, kw_only=True, tag="dynamic-int8"):
    """Weights as INT8, and activations in each run, by the range of the whole tensor.

    "Of the whole tensor" is why it is never batched across requests: one row with large numbers makes the scale coarse
    for its neighbours (`DynamicQuantizeLinear`, https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html).
    """

    operators: Literal["all", "products"] = "all"
    """All that ONNX Runtime has dynamic kernels for, Conv and Gather too, or only MatMul, Gemm, LSTM and Attention."""
    per_channel: bool = True
    exclude: Nodes = ()

    @property
    def may_batch(self) -> bool:
        """Never."""
        return False


class Fp16(_Config, frozen=True, kw_only=True, tag="fp16"):
    """fp16 inside, inputs and outputs as they were. For GPUs: CPUs convert back and forth and gain nothing."""


Recipe = WeightOnly | StaticQdq | DynamicInt8 | Fp16
