"""The gate: which variants may serve, which one does, and why, in a sentence with the figures.

A pure function of what was measured. fp32 is the reference and always passes: it is the model. A candidate passes
if its answers are close enough, if rows are as independent in it as in fp32, and if it is faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.optimizer.messages import Candidate


@dataclass(frozen=True)
class Policy:
    """What a candidate must reach, against fp32."""

    min_cosine: float = 0.999
    min_top1_agreement: float = 0.99
    min_speedup: float = 1.05


@dataclass(frozen=True)
class Decision:
    """The variant that serves, why, and the candidates that did not pass with their reasons."""

    chosen: str
    reason: str
    rejected: Mapping[str, str]


def decide(
    reference: Candidate, candidates: Sequence[Candidate], failed: Mapping[str, str], policy: Policy
) -> Decision:
    """The fastest candidate that passes, else the reference. `failed` are candidates that could not be measured."""
    rejected = dict(failed)
    passed = []
    for candidate in candidates:
        problem = _problem(reference, candidate, policy)
        if problem is None:
            passed.append(candidate)
        else:
            rejected[candidate.variant] = problem
    if passed:
        best = max(passed, key=lambda candidate: candidate.measurements.speedup or 0.0)
        return Decision(best.variant, f"{best.variant}: {_figures(best)}", rejected)
    because = "; ".join(f"{variant}: {problem}" for variant, problem in rejected.items())
    return Decision(reference.variant, f"{reference.variant}: {because or 'there was no other candidate'}", rejected)


def _problem(reference: Candidate, candidate: Candidate, policy: Policy) -> str | None:
    """Why a candidate does not pass, None if it does."""
    found = candidate.measurements
    if found.cosine is None and found.top1_agreement is None:
        return "its answers could not be compared with those of fp32"
    if found.cosine is not None and found.cosine < policy.min_cosine:
        return f"cosine {found.cosine:.5f} is below {policy.min_cosine:g}"
    if found.top1_agreement is not None and found.top1_agreement < policy.min_top1_agreement:
        return f"top-1 agreement {found.top1_agreement:.5f} is below {policy.min_top1_agreement:g}"
    if reference.measurements.row_independent and not found.row_independent:
        return "its answers depend on the rows beside them, those of fp32 do not"
    if found.speedup is None or found.speedup < policy.min_speedup:
        return f"{_speed(found.speedup)} is below {policy.min_speedup:g}x ({_figures(candidate)})"
    return None


def _figures(candidate: Candidate) -> str:
    found = candidate.measurements
    shares = (("cosine", found.cosine), ("top-1 agreement", found.top1_agreement))
    quality = " and ".join(f"{name} {value:.5f}" for name, value in shares if value is not None)
    return f"{_speed(found.speedup)} at {quality}"


def _speed(speedup: float | None) -> str:
    return "unknown speed" if speedup is None else f"{speedup:.2f}x"
