"""What a format's module gives: an ONNX model, and the original to run beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnx import ModelProto

    from services.optimizer.sandbox.engine import Feeds
    from shared.tensors import Array


class NotConvertible(Rejection):
    """Nothing is wrong with the model, but it has no ONNX form here; it may run as it is, in its own framework."""

    def __init__(self, found: str) -> None:
        super().__init__("not_convertible", found)


@dataclass(frozen=True)
class Source:
    """An ONNX model as its exporter left it.

    `run` is the original: from arrays by input name to the outputs in the model's order; it raises whatever its
    framework raises. None: there is no other form to compare with, because no number was changed.
    `settings` are sizes of free dimensions, by name, that are known to run.
    """

    model: ModelProto
    how: str
    run: Callable[[Feeds], Sequence[Array]] | None = None
    settings: Sequence[Mapping[str, int]] = ()


def first_line(err: BaseException) -> str:
    """What an exception of somebody else's says, short enough for a reason."""
    text = " ".join(str(err).split())
    return f"{type(err).__name__}: {text[:400]}" if text else type(err).__name__
