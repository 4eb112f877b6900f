"""What a rule says of one node: which axes of its values go together, which may shrink, and which must stay.

An axis that a node's rule does not mention is pinned: what nobody understood is not cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from services.optimizer.training.coupling import Coupling
    from services.optimizer.training.graph import Step
    from services.optimizer.training.trace import Trace

    Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Links:
    """The links of one node."""

    step: Step
    trace: Trace
    coupling: Coupling
    opset: int
    folds: list[Fold]
    """Axes that this or another node folds into one, to be decided when all other links are known."""
    _mentioned: set[tuple[str, int]] = field(default_factory=set)

    def input(self, index: int) -> str:
        """The name of an input, "" if it is left out."""
        return self.step.inputs[index] if index < len(self.step.inputs) else ""

    @property
    def output(self) -> str:
        """The name of the first output."""
        return self.step.outputs[0]

    @property
    def attributes(self) -> Mapping[str, object]:
        """The node's attributes."""
        return self.step.attributes

    def rank(self, name: str) -> int:
        """The number of a value's axes."""
        return self.trace.rank(name)

    def places(self, name: str, axis: int) -> Places:
        """The places of an axis; none if it is free, or has one index, which can't go."""
        size = self.trace.size(name, axis)
        return self.coupling.places((name, axis), size) if size and size > 1 else np.empty(0, np.int64)

    def free(self, name: str, *axes: int) -> None:
        """These axes may shrink, and nothing else of this node has to."""
        self._mentioned.update((name, axis) for axis in axes)

    def same(self, left: str, left_axis: int, right: str, right_axis: int) -> None:
        """Index by index the two axes go together; one of size 1 fits any other."""
        first, second = self.places(left, left_axis), self.places(right, right_axis)
        sizes = self.trace.both(left)[left_axis], self.trace.both(right)[right_axis]
        if sizes[0] == sizes[1]:
            self.coupling.tie(first, second)
        elif (1, 1) not in sizes:
            return
        self.free(left, left_axis)
        self.free(right, right_axis)

    def broadcast(self, name: str, to: str, *, skip: int = 0) -> None:
        """The axes of a value go with those of another that it is broadcast to, from the last one, less `skip`."""
        if not name:
            return
        offset = self.rank(to) - self.rank(name)
        for axis in range(self.rank(name) - skip):
            self.same(name, axis, to, axis + offset)

    def integers(self, index: int, name: str) -> tuple[int, ...] | None:
        """Whole numbers that are an input or, in older opsets, an attribute; None if they vary or are not there."""
        given = self.input(index)
        if given:
            return self.trace.constant(given)
        found = self.attributes.get(name)
        return tuple(int(value) for value in found) if isinstance(found, (list, tuple)) else None

    def pin_rest(self) -> None:
        """Pin what no rule has mentioned."""
        for name in (*self.step.inputs, *self.step.outputs):
            for axis in range(self.rank(name)) if name in self.trace.shapes[0] else ():
                if (name, axis) not in self._mentioned:
                    self.coupling.pin(self.places(name, axis))


@dataclass(frozen=True)
class Fold:
    """One axis that holds several in row-major order: (channels, height, width), (heads, places of a head).

    One of the several can be cut, and with each of its indices a regular part of the one. The others must stay.
    """

    one: Places
    several: tuple[Places, ...]
    sizes: tuple[int, ...]

    def tie(self, coupling: Coupling) -> None:
        """Take the first of the several that nothing pins so far."""
        group, pinned = coupling.groups(), coupling.pinned()
        carrier = next((each for each in self.several if len(each) and not pinned[group[each]].any()), None)
        for places in self.several:
            if carrier is None or places is not carrier:
                coupling.pin(places)
        if carrier is None:
            coupling.pin(self.one)
            return
        index = next(index for index, places in enumerate(self.several) if places is carrier)
        coupling.tie(np.repeat(np.tile(carrier, prod(self.sizes[:index])), prod(self.sizes[index + 1 :])), self.one)
