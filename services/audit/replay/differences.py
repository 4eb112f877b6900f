"""Two answers to one request held against each other, output by output. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shared.tensors import bf16_floats, to_numpy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.tensors import Array, Tensor

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs in one output."""

    output: str
    what: str
    """In words, where elements can't be compared: another shape, or not there."""
    elements: int = 0
    """How many differ, and of how many."""
    of: int = 0
    max_abs: float | None = None
    """The largest distance between two numbers; None where it is none."""
    excess: float | None = None
    """The least tolerance that would have been enough."""
    shown: tuple[tuple[int, Any, Any], ...] = ()
    """The first that differ: index in the flat output, recorded, replayed."""


def differences(recorded: Sequence[Tensor], replayed: Sequence[Tensor]) -> tuple[Difference, ...]:
    """What differs between two answers; nothing where they are the same bytes."""
    ours = {tensor.name: tensor for tensor in replayed}
    theirs = {tensor.name: tensor for tensor in recorded}
    found = [Difference(name, "the recorded answer does not have it") for name in ours.keys() - theirs.keys()]
    for name, tensor in theirs.items():
        if name not in ours:
            found.append(Difference(name, "it is not there any more"))
        elif (difference := _difference(tensor, ours[name])) is not None:
            found.append(difference)
    return tuple(found)


def within(found: Sequence[Difference], tolerance: float) -> bool:
    """Whether every number is within `tolerance * (1 + |recorded|)` of the recorded one, and all else is equal."""
    return all(each.excess is not None and each.excess <= tolerance for each in found)


def _difference(recorded: Tensor, replayed: Tensor) -> Difference | None:
    if (recorded.datatype, recorded.shape) != (replayed.datatype, replayed.shape):
        was, now = (f"{each.datatype}{list(each.shape)}" for each in (recorded, replayed))
        return Difference(recorded.name, f"{now}, recorded {was}")
    if bytes(recorded.data) == bytes(replayed.data):
        return None
    old, new = _numbers(recorded), _numbers(replayed)
    differ = np.flatnonzero(_unequal(old, new))
    shown = tuple((int(at), _plain(old[at]), _plain(new[at])) for at in differ[:_SHOWN])
    max_abs, excess = _distance(old, new)
    return Difference(recorded.name, "", len(differ), len(old), max_abs, excess, shown)


def _distance(old: Array, new: Array) -> tuple[float | None, float | None]:
    """The largest distance, and the least tolerance under which it passes; None for what are no numbers."""
    if old.dtype.kind not in "fiu":
        return None, None
    if old.dtype.kind in "iu":
        far = max((abs(int(a) - int(b)) for a, b in zip(old, new, strict=True)), default=0)
        return float(far), None  # whole numbers are classes and counts: none is nearly another
    wide, other = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(other)
    if not np.array_equal(wide[~finite], other[~finite], equal_nan=True):
        return None, None
    gap = np.abs(wide[finite] - other[finite])
    if not len(gap):
        return 0.0, 0.0
    return float(gap.max()), float((gap / (1 + np.abs(wide[finite]))).max())


def _unequal(old: Array, new: Array) -> Array:
    if old.dtype.kind == "f":
        # By bits: -0.0 and 0.0 are not the same answer, and a NaN is itself.
        bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[old.dtype.itemsize]
        return np.asarray(old.view(bits) != new.view(bits))
    return np.asarray(old != new)


def _numbers(tensor: Tensor) -> Array:
    flat = np.ascontiguousarray(to_numpy(tensor).reshape(-1))
    return np.asarray(bf16_floats(flat)) if tensor.datatype == "BF16" else flat


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value[:40].decode("utf-8", "replace")
    return value.item()
