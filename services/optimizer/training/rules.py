"""How axes go together through each operator. What has no rule pins the axes of all that it touches.

The rules say what is right for the *structure*: that the graph still runs and each remaining number comes from the same
inputs. What removal does to the numbers (a norm or a mean over fewer) is healed by training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from services.optimizer.training.links import Fold
from services.optimizer.training.operators.elementwise import ELEMENTWISE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.optimizer.training.links import Links

    Rule = Callable[[Links], None]
    Sizes = list[tuple[int, int]]


def _elementwise(links: Links) -> None:
    for name in links.step.inputs:
        links.broadcast(name, links.output)


def _matmul(links: Links) -> None:
    left, right, out = links.input(0), links.input(1), links.output
    wide_left, wide_right = links.rank(left) > 1, links.rank(right) > 1
    links.same(left, links.rank(left) - 1, right, links.rank(right) - (2 if wide_right else 1))
    if wide_right:
        links.same(right, links.rank(right) - 1, out, links.rank(out) - 1)
    if wide_left:
        links.same(left, links.rank(left) - 2, out, links.rank(out) - (2 if wide_right else 1))
    if wide_left and wide_right:
        links.broadcast(left, out, skip=2)
        links.broadcast(right, out, skip=2)


def _gemm(links: Links) -> None:
    left, right, out = links.input(0), links.input(1), links.output
    flip_left, flip_right = bool(links.attributes.get("transA", 0)), bool(links.attributes.get("transB", 0))
    links.same(left, int(not flip_left), right, int(flip_right))
    links.same(left, int(flip_left), out, 0)
    links.same(right, int(not flip_right), out, 1)
    links.broadcast(links.input(2), out)


def _conv(links: Links) -> None:
    _windowed(links, given=1, made=0)


def _conv_transpose(links: Links) -> None:
    _windowed(links, given=0, made=1)


def _windowed(links: Links, *, given: int, made: int) -> None:
    """`given` and `made` are the kernel's axes of input and output channels."""
    tensor, kernel, bias, out = links.input(0), links.input(1), links.input(2), links.output
    links.same(tensor, 0, out, 0)
    if bias:
        links.same(bias, 0, out, 1)
    groups: Any = links.attributes.get("group", 1)
    if groups == 1:
        links.same(tensor, 1, kernel, given)
        links.same(kernel, made, out, 1)
        return
    # A group goes as a whole: its inputs, its outputs, and its part of the kernel's first axis.
    parts = [links.places(tensor, 1), links.places(kernel, 0), links.places(out, 1)]
    if not all(len(part) for part in parts):
        return  # one channel, or a free number of them
    firsts = [part.reshape(groups, -1)[:, 0] for part in parts]
    for part, first in zip(parts, firsts, strict=True):
        links.coupling.tie(np.repeat(first, len(part) // groups), part)
        links.coupling.tie(first, firsts[0])
    for name, axis in ((tensor, 1), (kernel, 0), (out, 1)):
        links.free(name, axis)


def _pool(links: Links) -> None:
    for axis in (0, 1):
        links.same(links.input(0), axis, links.output, axis)


def _batch_normalization(links: Links) -> None:
    links.broadcast(links.input(0), links.output)
    for index in range(1, len(links.step.inputs)):
        links.same(links.input(index), 0, links.output, 1)


def _concat(links: Links) -> None:
    out = links.output
    axis = int(str(links.attributes["axis"])) % links.rank(out)
    begin, whole = 0, links.places(out, axis)
    for name in links.step.inputs:
        for other in range(links.rank(name)):
            if other != axis:
                links.same(name, other, out, other)
        size = links.trace.size(name, axis)
        if size is not None and len(whole):
            part = links.places(name, axis)
            if len(part):
                links.coupling.tie(part, whole[begin : begin + size])
            else:
                links.coupling.pin(whole[begin : begin + size])
            links.free(name, axis)
            begin += size
    if len(whole):
        links.free(out, axis)


def _split(links: Links) -> None:
    tensor = links.input(0)
    axis = int(str(links.attributes.get("axis", 0))) % links.rank(tensor)
    begin, whole = 0, links.places(tensor, axis)
    for name in links.step.outputs:
        for other in range(links.rank(name)):
            if other != axis:
                links.same(tensor, other, name, other)
        size = links.trace.size(name, axis)
        if not len(whole) or size is None:
            return
        part = links.places(name, axis)
        if len(part):
            links.coupling.tie(part, whole[begin : begin + size])
        else:
            links.coupling.pin(whole[begin : begin + size])
        links.free(name, axis)
        begin += size
    links.free(tensor, axis)


def _slice(links: Links) -> None:
    tensor, out = links.input(0), links.output
    ranges = slices(links)
    for axis in range(links.rank(tensor)):
        if axis not in ranges:
            links.same(tensor, axis, out, axis)
            continue
        taken, whole, part = ranges[axis], links.places(tensor, axis), links.places(out, axis)
        if taken is None or taken.step != 1 or len(taken) != len(part):
            continue
        links.coupling.tie(whole[taken.start : taken.stop], part)
        links.free(tensor, axis)
        links.free(out, axis)


def slices(links: Links) -> dict[int, range | None]:
    """What a Slice takes of each axis that it cuts; None if that is not fixed."""
    tensor, rank = links.input(0), links.rank(links.input(0))
    starts, ends = links.integers(1, "starts"), links.integers(2, "ends")
    given = links.integers(3, "axes")
    if starts is None or ends is None or (given is None and links.input(3)):
        return dict.fromkeys(range(rank))
    axes = given if given is not None else tuple(range(len(starts)))
    steps = (links.integers(4, "steps") or (0,) * len(starts)) if links.input(4) else (1,) * len(starts)
    found: dict[int, range | None] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = links.trace.size(tensor, axis % rank)
        found[axis % rank] = None if size is None or not step else range(*slice(start, end, step).indices(size))
    return found


def _gather(links: Links) -> None:
    data, indices, out = links.input(0), links.input(1), links.output
    axis = int(str(links.attributes.get("axis", 0))) % links.rank(data)
    width = links.rank(indices)
    for other in range(links.rank(data)):
        if other != axis:
            links.same(data, other, out, other if other < axis else other + width - 1)
    for other in range(width):
        links.same(indices, other, out, axis + other)


def _transpose(links: Links) -> None:
    tensor = links.input(0)
    found: Any = links.attributes.get("perm", list(reversed(range(links.rank(tensor)))))
    for axis, source in enumerate(found):
        links.same(tensor, source, links.output, axis)


def _expand(links: Links) -> None:
    """An axis that is made by repeating one index stays."""
    tensor, out = links.input(0), links.output
    offset = links.rank(out) - links.rank(tensor)
    for axis, sizes in enumerate(links.trace.both(tensor)):
        if sizes == links.trace.both(out)[axis + offset]:
            links.same(tensor, axis, out, axis + offset)


def _pad(links: Links) -> None:
    """An axis that grows stays."""
    for axis, sizes in enumerate(links.trace.both(links.input(0))):
        if sizes == links.trace.both(links.output)[axis]:
            links.same(links.input(0), axis, links.output, axis)


def _reduce(links: Links) -> None:
    tensor, out = links.input(0), links.output
    axes = links.integers(1, "axes")
    if axes is None and links.input(1):
        return
    if not axes and links.attributes.get("noop_with_empty_axes", 0):
        links.broadcast(tensor, out)
        return
    gone = {axis % links.rank(tensor) for axis in axes or range(links.rank(tensor))}
    keep, target = bool(links.attributes.get("keepdims", 1)), 0
    for axis in range(links.rank(tensor)):
        if axis in gone:
            links.free(tensor, axis)
        else:
            links.same(tensor, axis, out, target)
        target += int(keep or axis not in gone)


def _shape(links: Links) -> None:
    links.free(links.input(0), *range(links.rank(links.input(0))))


def _reshape(links: Links) -> None:
    tensor, out = links.input(0), links.output
    for ins, outs in _blocks(links.trace.both(tensor), links.trace.both(out)):
        if len(ins) == len(outs) == 1:
            links.same(tensor, ins[0], out, outs[0])
        elif len(ins) == 1:
            _fold(links, (tensor, ins[0]), (out, outs))
        elif len(outs) == 1:
            _fold(links, (out, outs[0]), (tensor, ins))


def _fold(links: Links, one: tuple[str, int], several: tuple[str, list[int]]) -> None:
    name, axes = several
    sizes = [links.trace.size(name, axis) for axis in axes]
    if links.trace.size(*one) is None or None in sizes:
        return
    places = tuple(links.places(name, axis) for axis in axes)
    links.folds.append(Fold(links.places(*one), places, tuple(size or 0 for size in sizes)))
    links.free(*one)
    links.free(name, *axes)


def _blocks(ins: Sizes, outs: Sizes) -> list[tuple[list[int], list[int]]]:
    """Runs of axes on both sides that hold the same elements, in both traces; axes of size 1 are left out."""
    found, left, right = [], 0, 0
    while left < len(ins) or right < len(outs):
        taken: tuple[list[int], list[int]] = ([], [])
        products = [(1, 1), (1, 1)]
        while (not any(taken) or products[0] != products[1]) and (left < len(ins) or right < len(outs)):
            side = 0 if left < len(ins) and (products[0] <= products[1] or right == len(outs)) else 1
            axis, size = (left, ins[left]) if side == 0 else (right, outs[right])
            taken[side].append(axis)
            products[side] = (products[side][0] * size[0], products[side][1] * size[1])
            left, right = (left + 1, right) if side == 0 else (left, right + 1)
        found.append(([a for a in taken[0] if ins[a] != (1, 1)], [a for a in taken[1] if outs[a] != (1, 1)]))
    return found


_REDUCTIONS: Final = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS},
    "AveragePool": _pool,
    "BatchNormalization": _batch_normalization,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "InstanceNormalization": _batch_normalization,
    "LayerNormalization": _elementwise,
    "LogSoftmax": _elementwise,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _pool,
    "Shape": _shape,
    "Size": _shape,
    "Slice": _slice,
    "Softmax": _elementwise,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
