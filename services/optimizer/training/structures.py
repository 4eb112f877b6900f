"""What can be taken out of a graph: families of groups of places. A family is a layer's channels, neurons or heads.

Groups that lie in the same axes are alike, and are compared with each other: the channels of one convolution, the
neurons of one dense layer, the heads of one attention. What shares axes only in part (the branches before a Concat) is
a family each.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.optimizer.training.coupling import Coupling
from services.optimizer.training.links import Fold, Links
from services.optimizer.training.rules import RULES

if TYPE_CHECKING:
    import numpy.typing as npt

    from services.optimizer.training.coupling import Axis
    from services.optimizer.training.graph import Network
    from services.optimizer.training.trace import Trace

    Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Family:
    """Groups that are alike. `weights` are the initializers that each of them has a part of, in the file's order."""

    weights: tuple[str, ...]
    groups: Places


@dataclass(frozen=True)
class Structures:
    """The graph's families, and the groups behind them."""

    coupling: Coupling
    links: tuple[Links, ...]
    families: tuple[Family, ...]
    group: Places
    """The group of each place."""

    def kept(self, removed: Places) -> dict[Axis, npt.NDArray[np.bool_]]:
        """Of each axis that loses something, which indices stay."""
        gone = np.isin(self.group, removed)
        return {axis: ~gone[places] for axis, places in self.coupling.axes.items() if gone[places].any()}


def structures(network: Network, trace: Trace, tensors: tuple[str, ...]) -> Structures:
    """Follow all axes through the graph; `tensors` are the names of its initializers."""
    coupling, folds = Coupling(), list[Fold]()
    links = tuple(Links(step, trace, coupling, network.opset, folds) for step in network.steps)
    for each in links:
        rule = RULES.get(each.step.operator)
        if rule is not None:
            rule(each)
        each.pin_rest()
        for name in (*network.inputs, *network.outputs):
            _pin(each, name)
    for fold in folds:
        fold.tie(coupling)
    return Structures(coupling, links, _families(coupling, tensors), coupling.groups())


def _pin(links: Links, name: str) -> None:
    if name in (*links.step.inputs, *links.step.outputs):
        for axis in range(links.rank(name)):
            links.coupling.pin(links.places(name, axis))


def _families(coupling: Coupling, tensors: tuple[str, ...]) -> tuple[Family, ...]:
    group, pinned = coupling.groups(), coupling.pinned()
    axes_of: defaultdict[int, list[int]] = defaultdict(list)
    axes = list(coupling.axes)
    for index, axis in enumerate(axes):
        for found in np.unique(group[coupling.axes[axis]]).tolist():
            axes_of[found].append(index)
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for found, where in sorted(axes_of.items()):
        if not pinned[found]:
            alike[tuple(where)].append(found)
    order = {name: index for index, name in enumerate(tensors)}
    families = []
    for shared, groups in alike.items():
        names = sorted({axes[index][0] for index in shared} & order.keys(), key=order.__getitem__)
        if names and len(groups) > 1:
            families.append(Family(tuple(names), np.array(groups)))
    return tuple(families)
