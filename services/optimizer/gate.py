"""The gate: which variants may serve, which one does, and why, in a sentence with the figures.

A pure function of what was measured. fp32 is the reference and always passes: it is the model. A candidate passes
if its answers are close enough (`quality.policy`), if rows are as independent in it as in fp32, and if no batch size
is slower. Of those that pass, the Pareto set is kept, and the best of it by the policy's objective serves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shared.quality import policy as quality
from shared.quality.policy import Figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.optimizer.messages import Found
    from shared.events import Measurements
    from shared.optimization import Policy

_SLOWER: Final = 0.97
"""Below it, a time is called slower: medians of the same model differ by about as much."""
_MAX_SHOWN: Final = 3


@dataclass(frozen=True)
class Decision:
    """The variant that serves and why, why the other ones that passed are kept, and why the rest did not pass."""

    chosen: str
    reason: str
    rejected: Mapping[str, str]
    kept: Mapping[str, str] = field(default_factory=dict)


def decide(reference: Found, candidates: Sequence[Found], failed: Mapping[str, str], policy: Policy) -> Decision:
    """The best candidate that passes, else the reference. `failed` are candidates that could not be measured.

    The policy leaves nothing open: it was put over the optimizer's settings.
    """
    asked = _asked(policy)
    problems = dict(failed)
    for candidate in candidates:
        problem = _problem(reference, candidate, asked)
        if problem is not None:
            problems[candidate.step] = f"{problem} ({_figures(candidate)})"
    choice = quality.choose(
        _merits(reference, reference), [_merits(reference, candidate) for candidate in candidates], problems, asked
    )
    by_name = {found.step: found for found in candidates}
    reasons = dict(choice.reasons)
    kept = {name: reasons[name] for name in choice.pareto if name != reference.step}
    rejected = {name: why for name, why in reasons.items() if name not in kept and name != reference.step}
    if choice.chosen in by_name:
        why = f"{choice.chosen}: {_figures(by_name[choice.chosen])}"
    else:
        others = "; ".join(f"{name}: {why}" for name, why in list((rejected | kept).items())[:_MAX_SHOWN])
        why = f"{reference.step}: {others or 'there was no other candidate'}"
    kept[reference.step] = reasons.get(reference.step, "")
    return Decision(choice.chosen, why[:4000], rejected, kept)


def _asked(policy: Policy) -> quality.Policy:
    """The policy as `quality` has it."""
    return quality.Policy(
        objective=policy.objective or "latency",
        allowed_loss=policy.max_loss or 0.0,
        allowed_drift=1.0 - (policy.min_cosine or 0.0),
        min_gain=policy.min_gain or 1.0,
        proof=policy.proof or "estimate",
    )


def _problem(reference: Found, candidate: Found, policy: quality.Policy) -> str | None:
    """Why a candidate does not pass, None if it does."""
    problem = quality.problem(candidate.comparisons, policy)
    if problem is not None:
        return problem
    own, fp32 = _measured(candidate), _measured(reference)
    if fp32.row_independent and not own.row_independent:
        return "its answers depend on the rows beside them, those of fp32 do not"
    slower = {size: ratio for size, ratio in _ratios(own).items() if ratio < _SLOWER}
    if slower and policy.objective in {"latency", "throughput"}:
        size = min(slower, key=lambda size: slower[size])
        return f"it is slower than fp32 at batch size {size}: {slower[size]:.2f}x"
    return None


def _ratios(measured: Measurements) -> dict[int, float]:
    """How many times faster than fp32, beside which each was measured, by batch size."""
    return {each.batch_size: each.reference_s / each.p50_s for each in measured.latencies if each.reference_s}


def _merits(reference: Found, candidate: Found) -> Figures:
    """What candidates are held against each other by.

    Latency is that of fp32 at one row divided by the speedup, which is a mean over the batch sizes: what was measured
    at another time, or by another machine, still compares.
    """
    own, fp32 = _measured(candidate), _measured(reference)
    alone_s = next(iter(each.p50_s for each in fp32.latencies), 1.0)
    gained = own.speedup or 1e-9
    return Figures(
        variant=candidate.step,
        loss=quality.largest_loss(candidate.comparisons),
        latency_s=alone_s / gained,
        rows_per_s=own.throughput_rows_s or 0.0,
        size_bytes=own.byte_size,
        memory_bytes=own.memory_bytes,
    )


def _measured(found: Found) -> Measurements:
    assert found.measurements is not None  # noqa: S101 - for the type checker: what failed is not decided on
    return found.measurements


def _figures(candidate: Found) -> str:
    gating = [each for each in candidate.comparisons if each.gates][:_MAX_SHOWN]
    shares = (f"{each.metric} {each.candidate.value:.5f}" for each in gating)
    return f"{_speed(_measured(candidate).speedup)} at {' and '.join(shares) or 'unknown quality'}"


def _speed(speedup: float | None) -> str:
    return "unknown speed" if speedup is None else f"{speedup:.2f}x"
