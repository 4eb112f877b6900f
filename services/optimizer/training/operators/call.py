"""One execution of one node: its inputs, attributes and opset, with the readings that operators share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.optimizer.training.errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from services.optimizer.training.known import Known

    Operator = Callable[["Call"], Tensor | tuple[Tensor, ...]]
    """Computes a node: its only output, or all of them."""


@dataclass(frozen=True, slots=True)
class Call:
    """What an operator gets. An input that the node leaves out is None."""

    operator: str
    node: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Tensor | None, ...]
    outputs: int
    known: tuple[Known | None, ...] = ()
    """In an export: small whole numbers by their values, which may be symbols; see `training.known`."""

    def tensor(self, index: int) -> Tensor:
        """A required input."""
        found = self.optional(index)
        if found is None:
            raise self.unsupported(f"without input {index}")
        return found

    def optional(self, index: int) -> Tensor | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def of_known(self, index: int) -> Known | None:
        """An input by its values, where they are known in an export."""
        return self.known[index] if index < len(self.known) else None

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def integers(self, index: int, name: str) -> list[int] | None:
        """Integers that are an input in newer opsets and an attribute in older ones (`axes`, `pads`, `split`)."""
        if (known := self.of_known(index)) is not None:
            return list(known.values)
        found = self.optional(index)
        if found is not None:
            return [int(value) for value in found.reshape(-1).tolist()]
        given = self.attributes.get(name)
        return None if given is None else [int(value) for value in given]

    def numbers(self, index: int) -> list[float] | None:
        """The numbers in an optional input; None if it is left out or empty."""
        found = self.optional(index)
        return None if found is None or found.numel() == 0 else [float(value) for value in found.reshape(-1).tolist()]

    def unsupported(self, variant: str) -> UnsupportedModel:
        """The error for a variant of the operator that is not computed here."""
        return UnsupportedModel(f"{self.operator} {variant} (node {self.node!r})")
