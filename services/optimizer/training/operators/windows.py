"""Convolutions, pools and resizing: operators that slide over spatial axes. Tensors are [rows, channels, spatial…]."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from services.optimizer.training.operators.call import Call, Operator

_CONV: Final = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: Final = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX: Final = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: Final = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class _Window:
    """Kernel, strides, dilations and pads of a node for the input that it got."""

    def __init__(self, call: Call, kernel: list[int]) -> None:
        self.rank = len(kernel)
        if self.rank not in _CONV:
            raise call.unsupported(f"over {self.rank} spatial axes")
        self.kernel = kernel
        self.strides: list[int] = list(call.get("strides", [1] * self.rank))
        self.dilations: list[int] = list(call.get("dilations", [1] * self.rank))
        self.begin, self.end = self._pads(call, list(call.tensor(0).shape[2:]))

    def _pads(self, call: Call, sizes: list[int]) -> tuple[list[int], list[int]]:
        mode = call.get("auto_pad", "NOTSET")
        if mode in ("NOTSET", "VALID"):
            pads = list(call.get("pads", [0] * (2 * self.rank))) if mode == "NOTSET" else [0] * (2 * self.rank)
            return pads[: self.rank], pads[self.rank :]
        totals = [
            max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
            for size, stride, kernel, dilation in zip(sizes, self.strides, self.kernel, self.dilations, strict=True)
        ]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return (less, more) if mode == "SAME_UPPER" else (more, less)

    @property
    def even(self) -> bool:
        """Whether torch can pad by itself: alike on both sides, and for pools by no more than half a kernel."""
        return self.begin == self.end and all(
            2 * pad <= size for pad, size in zip(self.begin, self.kernel, strict=True)
        )

    def pad(self, tensor: Tensor, value: float = 0.0) -> Tensor:
        """The tensor with the pads around it."""
        pairs = reversed(list(zip(self.begin, self.end, strict=True)))
        return functional.pad(tensor, list(chain(*pairs)), value=value)


def _conv(call: Call) -> Tensor:
    tensor, weight = call.tensor(0), call.tensor(1)
    window = _Window(call, list(weight.shape[2:]))
    padding: Any = window.begin
    if window.begin != window.end:
        tensor, padding = window.pad(tensor), 0
    function: Any = _CONV[window.rank]
    how = {"stride": window.strides, "dilation": window.dilations, "groups": call.get("group", 1)}
    return function(tensor, weight, call.optional(2), padding=padding, **how)  # type: ignore[no-any-return]


def _conv_transpose(call: Call) -> Tensor:
    tensor, weight = call.tensor(0), call.tensor(1)
    window = _Window(call, list(weight.shape[2:]))
    if window.begin != window.end or "output_shape" in call.attributes or call.get("auto_pad", "NOTSET") != "NOTSET":
        raise call.unsupported("with uneven or automatic pads")
    function: Any = _TRANSPOSED[window.rank]
    how = {"stride": window.strides, "dilation": window.dilations, "groups": call.get("group", 1)}
    extra = call.get("output_padding", 0)
    return function(  # type: ignore[no-any-return]
        tensor, weight, call.optional(2), padding=window.begin, output_padding=extra, **how
    )


def _max_pool(call: Call) -> Tensor:
    tensor, window = call.tensor(0), _Window(call, list(call.attributes["kernel_shape"]))
    padding: Any = window.begin
    if not window.even:
        tensor, padding = window.pad(tensor, -torch.inf), 0
    how = {"dilation": window.dilations, "ceil_mode": bool(call.get("ceil_mode", 0))}
    function: Any = _MAX[window.rank]
    return function(tensor, window.kernel, window.strides, padding=padding, **how)  # type: ignore[no-any-return]


def _average_pool(call: Call) -> Tensor:
    tensor, window = call.tensor(0), _Window(call, list(call.attributes["kernel_shape"]))
    if any(dilation != 1 for dilation in window.dilations):
        raise call.unsupported("with dilations")
    function: Any = _AVERAGE[window.rank]
    how: dict[str, Any] = {"ceil_mode": bool(call.get("ceil_mode", 0))}
    counted = bool(call.get("count_include_pad", 0))
    if window.even:
        how |= {"padding": window.begin, "count_include_pad": counted}
        return function(tensor, window.kernel, window.strides, **how)  # type: ignore[no-any-return]
    pooled = function(window.pad(tensor), window.kernel, window.strides, **how)
    if counted:
        return pooled  # type: ignore[no-any-return]
    real = function(window.pad(torch.ones_like(tensor)), window.kernel, window.strides, **how)
    return pooled / real  # type: ignore[no-any-return]


def _spatial(tensor: Tensor) -> list[int]:
    return list(range(2, tensor.dim()))


def _resize(call: Call) -> Tensor:
    """Nearest and linear, where torch's interpolation is ONNX's."""
    tensor, scales, sizes = call.tensor(0), call.numbers(2), call.integers(3, "sizes")
    coordinates, mode = call.get("coordinate_transformation_mode", "half_pixel"), call.get("mode", "nearest")
    shape = list(tensor.shape)
    factors = scales or [size / old for size, old in zip(sizes or shape, shape, strict=True)]
    if factors[:2] != [1, 1] or "axes" in call.attributes:
        raise call.unsupported("of rows or channels")
    how: dict[str, Any] = {"size": sizes[2:]} if sizes else {"scale_factor": factors[2:]}
    whole = all(factor == int(factor) for factor in factors)
    nearest = (coordinates, call.get("nearest_mode", "round_prefer_floor"))
    if mode == "nearest" and (nearest == ("asymmetric", "floor") or (whole and nearest[1] != "ceil")):
        return functional.interpolate(tensor, mode="nearest", **how)
    if mode == "linear" and coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        linear = {3: "linear", 4: "bilinear", 5: "trilinear"}[tensor.dim()]
        return functional.interpolate(tensor, mode=linear, align_corners=coordinates == "align_corners", **how)
    raise call.unsupported(f"mode {mode}, {coordinates}, {nearest[1]}")


WINDOWS: Final[Mapping[str, Operator]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": lambda call: call.tensor(0).mean(_spatial(call.tensor(0)), keepdim=True),
    "GlobalMaxPool": lambda call: call.tensor(0).amax(_spatial(call.tensor(0)), keepdim=True),
    "MaxPool": _max_pool,
    "Resize": _resize,
}
