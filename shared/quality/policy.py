"""Policies: what a model's owner allows and wants, and what follows from that for measured candidates. All pure.

First quality: a candidate with a problem is out, whatever it gains. Of the others the Pareto set is kept: those that no
other beats in everything. The best by the policy's objective is one of them, if it gains enough over the reference;
otherwise the reference stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.quality.estimates import Comparison, Estimate

Objective = Literal["latency", "throughput", "size", "memory"]
Verdict = Literal["within", "beyond", "open"]
VariantName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.+-]{0,99}$")]
_Share = Annotated[float, Meta(ge=0, le=1)]
_MAX_BUDGET_S: Final = 86_400


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the owner of a model allows and wants.

    Raises:
        ValueError: no candidate is named, or one twice.
    """

    objective: Objective = "latency"
    allowed_loss: _Share = 0.01
    """Of the task metric; without labels, of agreement with the reference."""
    allowed_drift: _Share = 0.001
    """One less cosine, for outputs that are no scores and have no labels."""
    proof: Literal["estimate", "interval"] = "estimate"
    """Where the interval holds both: whether the estimate decides, or the whole interval must be within."""
    min_gain: Annotated[float, Meta(ge=1, le=1000)] = 1.05
    """In the objective, over the reference: less is not worth another variant."""
    budget_s: Annotated[float, Meta(gt=0, le=_MAX_BUDGET_S)] = 600.0
    """For building and measuring all candidates."""
    candidates: Annotated[tuple[VariantName, ...], Meta(max_length=100)] | None = None
    """Those to try, in this order; None: all that the optimizer knows."""

    def __post_init__(self) -> None:
        if self.candidates is not None and not 0 < len(self.candidates) == len(set(self.candidates)):
            raise ValueError(f"candidates={list(self.candidates)} must name each one once, and at least one")

    def allowed(self, comparison: Comparison) -> float:
        """How much may be lost in its metric."""
        return self.allowed_drift if comparison.metric == "cosine" else self.allowed_loss


class Figures(Struct, frozen=True, kw_only=True):
    """What was measured of one variant, all on the same class of worker. None: not measured, so worse than anything."""

    variant: str
    loss: float
    """The largest loss of the comparisons that gate; 0 for the reference."""
    latency_s: float
    """Of one row alone, median."""
    rows_per_s: float
    """At the batch size that gives most."""
    size_bytes: int
    memory_bytes: int | None = None


class Choice(Struct, frozen=True, kw_only=True):
    """What became of the candidates."""

    chosen: str
    pareto: tuple[str, ...]
    """In the order given."""
    reasons: Mapping[str, str]
    """Of every variant, the chosen one too, in a sentence."""


def verdict(loss: Estimate, allowed_loss: float) -> Verdict:
    """Whether the loss is within what is allowed, beyond it, or could be either.

    A test of non-inferiority by the confidence interval (G. Piaggio et al., "Reporting of noninferiority and
    equivalence randomized trials", JAMA 308(24), 2012): within if all of the interval is.
    """
    if loss.high <= allowed_loss:
        return "within"
    return "beyond" if loss.low > allowed_loss else "open"


def problem(comparisons: Sequence[Comparison], policy: Policy) -> str | None:
    """Why a candidate's quality is not enough, in a sentence; None if it is."""
    gating = [each for each in comparisons if each.gates and each.loss is not None]
    if not gating:
        return "its answers could not be compared with those of the reference"
    for each in gating:
        why = _problem(each, policy)
        if why is not None:
            return why
    return None


def _problem(comparison: Comparison, policy: Policy) -> str | None:
    loss, allowed = comparison.loss, policy.allowed(comparison)
    if loss is None:
        return None
    found = verdict(loss, allowed)
    if found == "within" or (found == "open" and policy.proof == "estimate" and loss.value <= allowed):
        return None
    figures = f"{loss.value:.5f} [{loss.low:.5f}, {loss.high:.5f}] over {comparison.rows} rows"
    doubt = " for sure" if found == "open" and loss.value <= allowed else ""
    return f"its loss in {comparison.metric} of {comparison.output!r} is {figures}: not{doubt} within {allowed:g}"


def largest_loss(comparisons: Sequence[Comparison]) -> float:
    """Of the comparisons that gate; 0 if none does."""
    return max((each.loss.value for each in comparisons if each.gates and each.loss is not None), default=0.0)


def pareto(figures: Sequence[Figures]) -> tuple[Figures, ...]:
    """Those that no other is as good as in everything and better in something, in the order given."""
    return tuple(each for each in figures if not any(_dominates(other, each) for other in figures))


def choose(reference: Figures, candidates: Sequence[Figures], problems: Mapping[str, str], policy: Policy) -> Choice:
    """The best by the policy's objective of those without a problem, if it gains enough; else the reference.

    `problems` says of candidates why they are out; one that was not built is there alone.
    """
    passed = [each for each in candidates if each.variant not in problems]
    kept = pareto([reference, *passed])
    reasons = dict(problems)
    gains = {each.variant: gain(reference, each, policy.objective) for each in passed}
    enough = [each for each in kept if gains.get(each.variant, 0.0) >= policy.min_gain]
    best = min(enough, key=lambda each: (_cost(each, policy.objective), *_costs(each), each.variant), default=reference)
    for each in passed:
        found = f"{policy.objective} {gains[each.variant]:.2f}x at a loss of {each.loss:.5f}"
        reasons[each.variant] = _reason(each, best, kept, found, gains[each.variant], policy)
    if best is reference:
        reasons[reference.variant] = f"no candidate within policy gains {policy.min_gain:g}x in {policy.objective}"
    else:
        reasons[reference.variant] = f"{best.variant} gains {gains[best.variant]:.2f}x in {policy.objective}"
    return Choice(chosen=best.variant, pareto=tuple(each.variant for each in kept), reasons=reasons)


def _reason(figures: Figures, best: Figures, kept: Sequence[Figures], found: str, gained: float, policy: Policy) -> str:
    if figures is best:
        return f"chosen: {found}"
    if figures not in kept:
        return f"another is as good in everything and better in something ({found})"
    if gained < policy.min_gain:
        return f"it gains less than {policy.min_gain:g}x ({found})"
    return f"{best.variant} is better in {policy.objective} ({found})"


def gain(reference: Figures, candidate: Figures, objective: Objective) -> float:
    """How many times better the candidate is in the objective; 0 where one of them was not measured."""
    before, after = _cost(reference, objective), _cost(candidate, objective)
    return before / after if math.isfinite(before) and math.isfinite(after) and after > 0 else 0.0


def _cost(figures: Figures, objective: Objective) -> float:
    """What to make small: seconds, seconds a row, bytes."""
    match objective:
        case "latency":
            return figures.latency_s
        case "throughput":
            return 1 / figures.rows_per_s if figures.rows_per_s > 0 else math.inf
        case "size":
            return figures.size_bytes
        case "memory":
            return math.inf if figures.memory_bytes is None else figures.memory_bytes


def _costs(figures: Figures) -> tuple[float, ...]:
    objectives: tuple[Objective, ...] = ("latency", "throughput", "size", "memory")
    return (figures.loss, *(_cost(figures, objective) for objective in objectives))


def _dominates(one: Figures, other: Figures) -> bool:
    """Whether `one` is as good in everything and better in something."""
    ours, theirs = _costs(one), _costs(other)
    return ours != theirs and all(our <= their for our, their in zip(ours, theirs, strict=True))
