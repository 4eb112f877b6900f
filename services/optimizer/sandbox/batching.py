"""Finding the batch axes of a model, and proving that rows are independent along them, by running it.

A *hypothesis* names for each input the axis along which it may hold rows. It must be consistent (a named dimension is
the same everywhere) and is tried from the most likely on: all inputs have one, as far in front as possible. It holds
if

1. the model runs at 1, 2 and 3 rows, and every output has exactly one axis that has that size;
2. at 2, 8 and the cap, a row's answer does not change with its neighbours: beside plain and beside extreme ones it is
   the same within `RTOL`, and `ATOL` times the size of the answer;
3. nor with the number of them: beside others it is what it is alone. Kernels differ by batch size, and a model may
   amplify their rounding on rows that are odd to it (Magika, on symbols outside its vocabulary: up to 0.1), so
   every row must agree within `LOOSE` and a fifth of them as closely as above; a real dependence on the size spares
   none;
4. where another size of the other free dimensions runs too, the same at that size, with 2 rows.

The cap is the largest size up to the configured one whose run stays within the time and memory allowed. If no
hypothesis holds, there are no batch axes: one execution per request, which is always right.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from services.optimizer.rejections import Rejection
from services.optimizer.sandbox.probes import EXTREMES, HIGHS, Rows, Setting, key, pick, stack
from shared.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from services.optimizer.sandbox.engine import Runner
    from services.optimizer.sandbox.probes import Axes
    from shared.signature import Signature, TensorSpec
    from shared.tensors import Array

RTOL: Final = 1e-4
ATOL: Final = 1e-5
LOOSE: Final = 0.5
_LEAST_SHARE: Final = 0.2
_SIZES: Final = (16, 32, 64, 128, 224, 256, 28, 512, 576, 1024, 8, 1, 3)
"""Sizes of free dimensions that are tried: sequences, images, windows of audio."""
_SHAPE_SIZES: Final = (1, 2, 3)
_PROOF_SIZES: Final = (2, 8)
_MAX_HYPOTHESES: Final = 64
_MAX_BATCH_BYTES: Final = 256 * 1024**2
_POOL: Final = 16
"""Different plain rows that a proof mixes."""


@dataclass(frozen=True)
class Batching:
    """How to run a model: a setting that works, and the batch axes if rows were proved independent."""

    setting: Setting
    inputs: Axes
    outputs: tuple[int, ...] | None
    """The batch axis of each output; None if rows were not proved independent."""
    cap: int = 1

    def annotate(self, signature: Signature) -> Signature:
        """The signature with its batch axes."""
        if self.outputs is None:
            return signature
        inputs = (replace(spec, batch_axis=self.inputs[spec.name]) for spec in signature.inputs)
        outputs = (replace(spec, batch_axis=axis) for spec, axis in zip(signature.outputs, self.outputs, strict=True))
        return type(signature)(inputs=tuple(inputs), outputs=tuple(outputs))


def find(
    engine: Runner, signature: Signature, *, cap: int, max_run_s: float, seed: int, until_s: float = math.inf
) -> Batching:
    """The batching that holds for the model.

    Once `until_s` (of the monotonic clock) has passed and a setting that works is known, no hypothesis is tried on.

    Raises:
        Rejection: the model runs on nothing that was tried; the first failure says why.
    """
    search = _Search(engine, signature, seed)
    works: Setting | None = None
    for axes in hypotheses(signature):
        if works is not None and time.monotonic() > until_s:
            break
        settings = list(islice(search.settings(axes), 2))
        if not settings:
            continue
        works = works or settings[0]
        outputs = search.output_axes(axes, settings[0])
        if outputs is None:
            continue
        proof = Proof(engine, Rows(signature, settings[0], axes, seed), axes, outputs)
        most = proof.cap(cap, max_run_s)
        if most == 1 or not proof.holds(_proof_sizes(most)):
            continue
        if all(search.holds_at(axes, outputs, other) for other in settings[1:]):
            return Batching(settings[0], axes, outputs, most)
    if works is None:
        raise search.failure or Rejection("execution_failed", "The model ran on nothing that was tried")
    return Batching(works, _none(signature), None)


def holds(engine: Runner, signature: Signature, batching: Batching, seed: int) -> bool:
    """Whether another variant of the model is independent along the same axes, up to the same cap."""
    if batching.outputs is None:
        return False
    rows = Rows(signature, batching.setting, batching.inputs, seed)
    return Proof(engine, rows, batching.inputs, batching.outputs).holds(_proof_sizes(batching.cap))


def _proof_sizes(cap: int) -> list[int]:
    return [*(size for size in _PROOF_SIZES if size < cap), cap]


def hypotheses(signature: Signature) -> list[Axes]:
    """Consistent assignments of batch axes to inputs, the most likely first; the last one assigns none."""
    specs = signature.inputs
    found = [_complete(specs, {name}) for name in dict.fromkeys(_keys(specs))]
    found.append(_complete(specs, {name for spec in specs if (name := next(iter(_keys([spec])), None))}))
    options = ([*_keys([spec]), None] for spec in specs)
    combined = islice(product(*options), _MAX_HYPOTHESES)
    found += [_complete(specs, {name for name in names if name}) for names in combined]
    unique = {tuple(axes.items()): axes for axes in found if axes is not None}
    unique.pop(tuple(_none(signature).items()), None)
    likely = sorted(unique.values(), key=lambda axes: _unlikeliness(specs, axes))
    return [*likely[: _MAX_HYPOTHESES - 1], _none(signature)]


def _none(signature: Signature) -> Axes:
    return dict.fromkeys((spec.name for spec in signature.inputs), None)


def _keys(specs: Iterable[TensorSpec]) -> Iterator[str]:
    for spec in specs:
        for axis in range(len(spec.shape)):
            if (name := key(spec, axis)) is not None:
                yield name


def _complete(specs: Iterable[TensorSpec], names: set[str]) -> Axes | None:
    """The assignment in which exactly the dimensions called `names` are batch axes; None if an input has two."""
    axes: Axes = {}
    for spec in specs:
        mine = [axis for axis in range(len(spec.shape)) if key(spec, axis) in names]
        if len(mine) > 1:
            return None
        axes[spec.name] = mine[0] if mine else None
    return axes


def _unlikeliness(specs: Iterable[TensorSpec], axes: Axes) -> tuple[int, int]:
    """How many inputs have free dimensions and no batch axis, then how far back the axes are."""
    without = sum(axes[spec.name] is None for spec in specs if any(True for _ in _keys([spec])))
    return without, sum(axis for axis in axes.values() if axis is not None)


class _Search:
    """Looks for settings on which the model runs."""

    def __init__(self, engine: Runner, signature: Signature, seed: int) -> None:
        self._engine = engine
        self._signature = signature
        self._seed = seed
        self.failure: Rejection | None = None

    def settings(self, axes: Axes) -> Iterator[Setting]:
        """Settings that run, batch dimensions being 1.

        Raises:
            Rejection: a run did not end.
        """
        specs = self._signature.inputs
        batch = {key(spec, axis) for spec in specs if (axis := axes[spec.name]) is not None}
        free = [name for name in dict.fromkeys(_keys(specs)) if name not in batch]
        ones = {name: 1 for name in batch if name is not None}
        for size in _SIZES if free else _SIZES[:1]:
            setting = Setting({**ones, **dict.fromkeys(free, size)})
            if self._runs(setting, axes):
                yield self._widened(setting, axes)

    def _runs(self, setting: Setting, axes: Axes) -> bool:
        try:
            self._engine.run(stack(Rows(self._signature, setting, axes, self._seed).plain(1), axes))
        except Rejection as failure:
            if failure.code == "run_timeout":
                raise
            self.failure = self.failure or failure
            return False
        return True

    def _widened(self, setting: Setting, axes: Axes) -> Setting:
        """The setting with the largest whole numbers that each input takes."""
        for spec in self._signature.inputs:
            dtype = DTYPES[spec.datatype]
            if dtype.kind not in "iu" or spec.datatype == "BF16":
                continue
            for high in HIGHS[1:]:
                if high > np.iinfo(dtype).max or not self._takes(setting, axes, spec.name, high):
                    break
                setting = Setting(setting.sizes, {**setting.highs, spec.name: high})
        return setting

    def _takes(self, setting: Setting, axes: Axes, name: str, high: int) -> bool:
        try:
            self._engine.run(Rows(self._signature, setting, axes, self._seed).highest(name, high))
        except Rejection as failure:
            if failure.code == "run_timeout":
                raise
            return False
        return True

    def output_axes(self, axes: Axes, setting: Setting) -> tuple[int, ...] | None:
        """The axis of each output whose size is the number of rows; None if not every output has exactly one."""
        rows = Rows(self._signature, setting, axes, self._seed)
        if not any(axis is not None for axis in axes.values()):
            return None
        try:
            runs = [self._engine.run(stack(rows.plain(size), axes)) for size in _SHAPE_SIZES]
        except Rejection:
            return None
        found = [_row_axis([outputs[index].shape for outputs in runs]) for index in range(len(self._engine.outputs))]
        return tuple(axis for axis in found if axis is not None) if None not in found else None

    def holds_at(self, axes: Axes, outputs: tuple[int, ...], setting: Setting) -> bool:
        """Whether 2 rows are independent at another setting."""
        return Proof(self._engine, Rows(self._signature, setting, axes, self._seed), axes, outputs).holds([2])


def _row_axis(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """The one axis along which these shapes have the sizes `_SHAPE_SIZES`, the others being constant."""
    if len({len(shape) for shape in shapes}) != 1:
        return None
    varying = [axis for axis in range(len(shapes[0])) if len({shape[axis] for shape in shapes}) > 1]
    if len(varying) != 1 or tuple(shape[varying[0]] for shape in shapes) != _SHAPE_SIZES:
        return None
    return varying[0]


class Proof:
    """Compares rows in company with rows alone."""

    def __init__(self, engine: Runner, rows: Rows, inputs: Axes, outputs: tuple[int, ...]) -> None:
        self._engine = engine
        self._inputs = inputs
        self._outputs = outputs
        self._plain = rows.plain(_POOL)
        self._extreme = rows.extreme()
        self._alone: list[list[Array]] = []

    def holds(self, sizes: Sequence[int]) -> bool:
        """Whether rows answer alike in any company, at each of the sizes."""
        try:
            self._alone = self._alone or [self._engine.run(stack([row], self._inputs)) for row in self._plain]
            close: list[bool] = []
            for size in sizes:
                together = self._engine.run(stack([self._plain[_member(size, i)] for i in range(size)], self._inputs))
                if not self._ignores_neighbours(size, together) or not self._ignores_size(size, together, close):
                    return False
        except Rejection:
            return False
        return sum(close) >= _LEAST_SHARE * len(close)

    def _ignores_neighbours(self, size: int, together: list[Array]) -> bool:
        """Whether answers stay when every other row becomes an extreme one, the even ones and then the odd ones."""
        for kept in (0, 1):
            rows = [
                self._plain[_member(size, place)] if place % 2 == kept else self._extreme[place // 2 % EXTREMES]
                for place in range(size)
            ]
            mixed = self._engine.run(stack(rows, self._inputs))
            for place in range(kept, size, 2):
                pairs = zip(pick(mixed, self._outputs, place), pick(together, self._outputs, place), strict=True)
                if not all(alike(found, expected) for found, expected in pairs):
                    return False
        return True

    def _ignores_size(self, size: int, together: list[Array], close: list[bool]) -> bool:
        """Whether no row's answer is far from the one it gives alone; which are close is added to `close`."""
        for place in range(min(size, _POOL)):
            alone = self._alone[_member(size, place)]
            pairs = list(zip(pick(together, self._outputs, place), alone, strict=True))
            # Labels and such flip where numbers only move a little: what they prove is in the share that is close.
            if not all(alike(found, right, LOOSE, LOOSE) for found, right in pairs if right.dtype.kind == "f"):
                return False
            close.append(all(alike(found, expected) for found, expected in pairs))
        return True

    def cap(self, most: int, max_run_s: float) -> int:
        """The largest of `most`, its half and so on that runs within `max_run_s` seconds and a bounded memory."""
        row_bytes = sum(array.nbytes for array in self._plain[0].values())
        row_s = self._duration_s(1)
        size = most
        # Runs twice as long as they may be, by the time of one row, are not even tried.
        while size > 1 and (size * row_bytes > _MAX_BATCH_BYTES or size * row_s > 2 * max_run_s):
            size //= 2
        while size > 1 and self._duration_s(size) > max_run_s:
            size //= 2
        return size

    def _duration_s(self, size: int) -> float:
        """How long a run of `size` rows takes; for ever if it fails."""
        try:
            return self._engine.duration_s(stack([self._plain[_member(size, i)] for i in range(size)], self._inputs))
        except Rejection:
            return math.inf


def _member(size: int, place: int) -> int:
    """Which plain row stands at a place: others for each size."""
    return (size + place) % _POOL


def alike(found: Array, expected: Array, rtol: float = RTOL, atol: float = ATOL) -> bool:
    """Whether two answers are the same within what different kernels make of the same numbers."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype.kind != "f":  # BF16 comes as bit patterns, and counts as equal only if it is
        return bool(np.array_equal(found, expected))
    with np.errstate(all="ignore"):
        finite = np.abs(expected[np.isfinite(expected)])
        scale = max(1.0, float(finite.max(initial=0.0)))
        step = float(np.finfo(expected.dtype).eps)  # FP16 can't be closer than its own steps
        return bool(
            np.allclose(found, expected, rtol=max(rtol, 2 * step), atol=max(atol, step) * scale, equal_nan=True)
        )
