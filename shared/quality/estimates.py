"""The vocabulary: an estimate with its interval, and the comparison of a candidate with its reference in one metric."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

LEVEL: Final = 0.95
"""Of all intervals."""

Method = Literal["wilson", "bonett-price", "bootstrap", "exact"]
Metric = Literal["accuracy", "top-k", "macro-f1", "mae", "rmse", "agreement", "cosine", "max-abs-error"]


class NotComparable(Exception):
    """Two arrays can't be held against each other; the message says why. It costs the candidate."""


class Estimate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure from a sample of rows, and its 95 % confidence interval.

    Raises:
        ValueError: the interval is the wrong way round.
    """

    value: float
    low: float
    high: float
    method: Method
    """How the interval was found; `exact`: the figure is of the rows themselves, and there is none."""

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval from {self.low} to {self.high}")


class Comparison(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric of one output."""

    output: str
    metric: Metric
    rows: Annotated[int, Meta(ge=1)]
    candidate: Estimate
    reference: Estimate | None
    """None where the metric compares with the reference itself."""
    loss: Estimate | None
    """What the candidate lost, positive if it is worse; see `compare`. None: the metric says nothing of that kind."""
    gates: bool
    """Whether a policy looks at it. The others are for people."""
    k: int | None = None
    """Of `top-k`."""
