"""Whether a converted model answers as the original does: by running both, side by side, at several shapes.

That a session can be made proves nothing. Free dimensions take several sizes, the first axes small ones (1, 2, 3, 5),
the others what both run at; whole numbers go as high as both take them. Numbers are made up from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from services.optimizer.conversion.source import first_line
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox.probes import HIGHS, Rows, Setting, key
from shared.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from services.optimizer.sandbox.engine import Engine, Feeds
    from shared.signature import Signature
    from shared.tensors import Array

RTOL: Final = 1e-3
ATOL: Final = 1e-4
_FIRST: Final = (1, 2, 3, 5)
_OTHERS: Final = (16, 32, 28, 64, 224, 128, 256, 512, 576, 1024, 8, 7, 3, 1)
_ENOUGH: Final = 3
"""Sizes of dimensions other than the first."""
_SEED: Final = 20


@dataclass(frozen=True)
class Parity:
    """The shapes that were run, and the largest difference found."""

    shapes: tuple[str, ...]
    max_abs_error: float


def compare(
    engine: Engine,
    signature: Signature,
    run: Callable[[Feeds], Sequence[Array]],
    settings: Sequence[Mapping[str, int]] = (),
) -> Parity:
    """Run both.

    Raises:
        Rejection: they ran together at no shape, or answered differently.
    """
    pair = _Pair(engine, signature, run)
    shapes, worst = [], 0.0
    for sizes in settings or list(pair.settings()):
        highs = pair.highs(sizes)
        feeds = pair.feeds(sizes, highs)
        worst = max(worst, pair.difference(feeds))
        shapes.append(", ".join(f"{name}[{','.join(map(str, array.shape))}]" for name, array in feeds.items()))
    if not shapes:
        raise Rejection("not_equivalent", f"Both ran together at no shape that was tried: {pair.failure}")
    return Parity(tuple(dict.fromkeys(shapes)), worst)


class _Pair:
    """The converted model and the original."""

    def __init__(self, engine: Engine, signature: Signature, run: Callable[[Feeds], Sequence[Array]]) -> None:
        self._engine = engine
        self._signature = signature
        self._run = run
        self.failure = "there are none"

    def feeds(self, sizes: Mapping[str, int], highs: Mapping[str, int]) -> Feeds:
        axes = dict.fromkeys((spec.name for spec in self._signature.inputs), None)
        return Rows(self._signature, Setting(sizes, highs), dict(axes), _SEED).plain(1)[0]

    def settings(self) -> Iterator[dict[str, int]]:
        """Sizes at which both run."""
        names = dict.fromkeys(
            (name, axis == 0)
            for spec in self._signature.inputs
            for axis in range(len(spec.shape))
            if (name := key(spec, axis)) is not None
        )
        first = [name for name, is_first in names if is_first]
        others = [name for name, is_first in names if not is_first and name not in first]
        working = [size for size in _OTHERS if self._both_run(dict.fromkeys(first, 2) | dict.fromkeys(others, size))]
        if not others:
            working = working[:1]
        for index, count in enumerate(_FIRST):
            sizes = dict.fromkeys(first, count)
            if working:
                sizes |= dict.fromkeys(others, working[index % min(_ENOUGH, len(working))])
            if self._both_run(sizes):
                yield sizes
            if not names:
                return

    def highs(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The largest whole numbers that both take, by input."""
        found: dict[str, int] = {}
        for spec in self._signature.inputs:
            dtype = DTYPES[spec.datatype]
            if dtype.kind not in "iu" or spec.datatype == "BF16":
                continue
            for high in HIGHS[1:]:
                if high > np.iinfo(dtype).max or not self._both_run(sizes, {**found, spec.name: high}):
                    break
                found[spec.name] = high
        return found

    def difference(self, feeds: Feeds) -> float:
        """The largest difference of two numbers.

        Raises:
            Rejection: it is more than is allowed.
        """
        expected = [np.asarray(each) for each in self._run(feeds)]
        found = self._engine.run(feeds)
        if len(found) != len(expected):
            raise Rejection(
                "not_equivalent", f"{len(found)} outputs of the conversion, {len(expected)} of the original"
            )
        return max(
            _difference(name, mine, theirs)
            for name, mine, theirs in zip(self._engine.outputs, found, expected, strict=True)
        )

    def _both_run(self, sizes: Mapping[str, int], highs: Mapping[str, int] | None = None) -> bool:
        if any(
            key(spec, axis) not in {None, *sizes} for spec in self._signature.inputs for axis in range(len(spec.shape))
        ):
            return False
        feeds = self.feeds(sizes, highs or {})
        try:
            self._run(feeds)
        except Exception as err:  # noqa: BLE001 - whatever the original's framework raises: this shape is not for it
            self.failure = f"the original: {first_line(err)}"
            return False
        try:
            self._engine.run(feeds)
        except Rejection as rejection:
            if rejection.code == "run_timeout":
                raise
            self.failure = f"the conversion: {rejection.found[:300]}"
            return False
        return True


def _difference(name: str, found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        what = f"Output {name!r} has the shape {found.shape} where the original gives {expected.shape}"
        raise Rejection("not_equivalent", what)
    if found.dtype.kind != "f":
        if not np.array_equal(found, expected):
            raise Rejection("not_equivalent", f"Output {name!r} differs from the original's")
        return 0.0
    if not found.size:
        return 0.0
    mine, theirs = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        difference = np.abs(mine - theirs)
        same = (mine == theirs) | (np.isnan(mine) & np.isnan(theirs))
        difference = np.where(same, 0.0, difference)
        scale = max(1.0, float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0)))
        step = 4 * float(np.finfo(found.dtype).eps)  # FP16 can't be closer than its own steps
        allowed = max(ATOL, step) * scale + max(RTOL, step) * np.abs(theirs)
        if not bool((difference <= allowed).all()):
            worst = float(np.nanmax(difference)) if np.isfinite(difference).any() else float("inf")
            found_ = f"Output {name!r} differs from the original's by {worst:g}, more than {ATOL:g} and {RTOL:g} of it"
            raise Rejection("not_equivalent", found_)
    return float(difference.max())
