"""Which places of a graph's tensors must go together: a union of (value, axis, index), as arrays.

Each index of each fixed axis is a place with a number. Places are tied in pairs; a group is all that is tied together,
directly or not. A group that contains a pinned place stays. Whole axes would be too coarse: behind a Concat an axis
belongs to several layers, and behind a Flatten one channel is many columns.

Union by the least number, with shortened paths, over arrays of pairs at once; what was joined once stays joined, so
ties can be added and asked for in turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Places = npt.NDArray[np.int64]
    Axis = tuple[str, int]


class Coupling:
    """The places and their groups."""

    def __init__(self) -> None:
        self.axes: dict[Axis, Places] = {}
        self._count = 0
        self._group: Places = np.empty(0, np.int64)
        self._ties: list[tuple[Places, Places]] = []
        self._pins: list[Places] = []

    def places(self, axis: Axis, size: int) -> Places:
        """The places of an axis, the same each time."""
        if axis not in self.axes:
            self.axes[axis] = np.arange(self._count, self._count + size)
            self._count += size
        return self.axes[axis]

    def tie(self, left: Places, right: Places) -> None:
        """Each place on the left goes with the one beside it on the right."""
        self._ties.append((left, right))

    def pin(self, places: Places) -> None:
        """These stay, with all that is tied to them."""
        self._pins.append(places)

    def groups(self) -> Places:
        """The group of each place, named by one of its places."""
        group = np.concatenate([self._group, np.arange(len(self._group), self._count)])
        if self._ties:
            left, right = (np.concatenate(side) for side in zip(*self._ties, strict=True))
            group = _joined(group, left, right)
        self._group, self._ties = group, []
        return group

    def pinned(self) -> npt.NDArray[np.bool_]:
        """Of each group, at its name, whether it stays."""
        group = self.groups()
        stays = np.zeros(self._count, np.bool_)
        for places in self._pins:
            stays[group[places]] = True
        return stays


def _joined(group: Places, left: Places, right: Places) -> Places:
    while True:
        left, right = group[left], group[right]
        apart = left != right
        if not apart.any():
            return group
        left, right = left[apart], right[apart]
        np.minimum.at(group, np.maximum(left, right), np.minimum(left, right))
        shorter = group[group]
        while not np.array_equal(shorter, group):
            group, shorter = shorter, shorter[shorter]
