"""What a format's module gives: an ONNX model with the original to run beside it; or, of torch, what it has loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnx import ModelProto

    from services.optimizer.sandbox.engine import Feeds
    from shared.signature import Signature
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


class Loaded(Protocol):
    """A vetted upload that torch has loaded."""

    content: bytes
    """The archive that vetting made of it: what a worker loads if it does not become ONNX."""

    @property
    def module(self) -> Any:
        """What runs: from tensors in the signature's order to tensors, in whatever containers."""

    def source(self) -> Source:
        """As ONNX.

        Raises:
            NotConvertible: torch does not export it.
        """

    def signature(self) -> Signature:
        """What it takes and gives as it is; batch axes are not known here.

        Raises:
            Rejection: that can't be carried.
        """


def first_line(err: BaseException) -> str:
    """What an exception of somebody else's says, short enough for a reason."""
    text = " ".join(str(err).split())
    return f"{type(err).__name__}: {text[:400]}" if text else type(err).__name__
