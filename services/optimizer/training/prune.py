"""Structured pruning: channels, neurons and attention heads go, and with them all that is coupled to them.

The graph is seen running (`trace`), its axes are followed (`structures`), the least important groups of each family are
cut (`slicing`), and the result is run beside what was predicted of it: every value must have the shape that is left.
What can't be followed stays as it is; if nothing can, the model is refused.

Importance is the length of all weights of a group together (https://arxiv.org/abs/2301.12900), or how much the loss
would change without it to first order (https://arxiv.org/abs/1906.10771), which needs rows.

A pruned model answers differently: heal it (`distil.heal`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from msgspec import Meta

from services.optimizer.training import importance
from services.optimizer.training.config import Config, Patterns, checked
from services.optimizer.training.errors import InvalidData, NotPrunable
from services.optimizer.training.graph import Network
from services.optimizer.training.optimizers import matches
from services.optimizer.training.slicing import Cut, lifted
from services.optimizer.training.structures import Family, Structures, structures
from services.optimizer.training.trace import example_feeds, trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from onnx import ModelProto

    from services.optimizer.training.data import Rows
    from services.optimizer.training.trace import Feeds, Trace


class Pruning(Config, frozen=True, kw_only=True):
    """What to take out: `ratio` of the groups of each family, rounded down."""

    ratio: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    importance: Literal["magnitude", "taylor"] = "magnitude"
    keep: Patterns = ()
    """A family with a weight of such a name stays whole."""
    at_least: Annotated[int, Meta(ge=1, le=65_536)] = 1
    """Groups that stay in each family."""
    multiple_of: Annotated[int, Meta(ge=1, le=1024)] = 1
    """As many more stay as make their number a multiple: vector units like whole ones."""


@dataclass(frozen=True)
class Removed:
    """What a family lost."""

    weights: tuple[str, ...]
    groups: int
    removed: int


@dataclass(frozen=True)
class Pruned:
    """The smaller model, and how much smaller it is."""

    model: ModelProto
    families: tuple[Removed, ...]
    parameters_before: int
    parameters_after: int


def prune(
    model: ModelProto, config: Pruning, rows: Rows | None = None, *, feeds: Sequence[Feeds] | None = None
) -> Pruned:
    """Take the least important structures out.

    `rows` are what the importance `taylor` looks at. `feeds` are two inputs that the model runs on, with every free
    dimension of another size in each; without them some are made up.

    Raises:
        UnsupportedModel, InvalidConfig, InvalidData: as `errors` says.
        NotPrunable: there is nothing to take, or the rest does not run as it should.
    """
    checked(config)
    whole = lifted(model)
    network = Network(whole)
    given = example_feeds(whole, network) if feeds is None else feeds
    seen = trace(network, given)
    found = structures(network, seen, tuple(tensor.name for tensor in whole.graph.initializer))
    scores = _scores(whole, network, found, config, rows)
    families = [family for family in found.families if not any(matches(name, config.keep) for name in family.weights)]
    chosen = [_least(family, scores, config) for family in families]
    removed = np.concatenate([np.empty(0, np.int64), *chosen])
    if not len(removed):
        raise NotPrunable(f"No channel, neuron or head can go at a ratio of {config.ratio:g}")
    kept = found.kept(removed)
    smaller = Cut(whole, found.links, kept).made()
    _verify(smaller, given, seen, kept)
    losses = zip(families, chosen, strict=True)
    return Pruned(
        smaller,
        tuple(Removed(family.weights, len(family.groups), len(gone)) for family, gone in losses),
        parameters(whole),
        parameters(smaller),
    )


def parameters(model: ModelProto) -> int:
    """How many numbers the weights have."""
    network = Network(model)
    return sum(weight.numel() for weight in network.parameter_by_name().values())


def _scores(
    model: ModelProto, network: Network, found: Structures, config: Pruning, rows: Rows | None
) -> npt.NDArray[np.float64]:
    if config.importance == "magnitude":
        return importance.magnitude(network, found)
    if rows is None:
        raise InvalidData("The importance 'taylor' looks at rows, and there are none")
    return importance.taylor(model, network, found, rows)


def _least(family: Family, scores: npt.NDArray[np.float64], config: Pruning) -> npt.NDArray[np.int64]:
    """The groups of a family that go."""
    count = len(family.groups)
    stay = max(config.at_least, count - int(count * config.ratio), 1)
    stay = min(count, -(-stay // config.multiple_of) * config.multiple_of)
    return family.groups[np.argsort(scores[family.groups], kind="stable")[: count - stay]]


def _verify(model: ModelProto, feeds: Sequence[Feeds], before: Trace, kept: Mapping[tuple[str, int], object]) -> None:
    """Run the smaller model, and compare each value's shape with what should be left of it."""
    try:
        after = trace(Network(model), feeds)
    except Exception as err:
        raise NotPrunable(f"What is left does not run: {err}") from err
    for run, shapes in enumerate(before.shapes):
        for name, shape in shapes.items():
            left = tuple(_left(kept.get((name, axis)), size) for axis, size in enumerate(shape))
            if name in after.shapes[run] and after.shapes[run][name] != left:
                raise NotPrunable(f"{name!r} would be {after.shapes[run][name]} and not {left} in what is left")


def _left(kept: object, size: int) -> int:
    return size if kept is None else int(np.sum(np.asarray(kept)))
