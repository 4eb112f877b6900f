"""The gate: which variants may serve, which one does, and why, in a sentence with the figures.

A pure function of what was measured. fp32 is the reference and always passes: it is the model. A candidate passes
if its answers are close enough (`quality.policy`), if rows are as independent in it as in fp32, and if no batch size
is slower on any class of worker that would serve it. Of those that pass, the Pareto set is kept, and the best of it by
the policy's objective serves. Where several classes would serve it, what it gains is what it gains where that is least.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from services.optimizer import speed
from services.optimizer.messages import Served
from services.optimizer.speed import HERE
from shared.quality import policy as quality
from shared.quality.policy import Figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.optimizer.messages import Found
    from services.optimizer.speed import Speed
    from shared.events import Measurements
    from shared.optimization import Policy

_SLOWER: Final = 0.97
"""Below it, a time is called slower: medians of the same model differ by about as much."""
_MAX_SHOWN: Final = 3
_HERE_ALONE: Final = Served()


@dataclass(frozen=True)
class Decision:
    """The variant that serves and why, why the other ones that passed are kept, and why the rest did not pass."""

    chosen: str
    reason: str
    rejected: Mapping[str, str]
    kept: Mapping[str, str] = field(default_factory=dict)


def decide(
    reference: Found,
    candidates: Sequence[Found],
    failed: Mapping[str, str],
    policy: Policy,
    served: Served = _HERE_ALONE,
) -> Decision:
    """The best candidate that passes, else the reference. `failed` are candidates that could not be measured.

    The policy leaves nothing open: it was put over the optimizer's settings.
    """
    asked = _asked(policy)
    speeds = {candidate.step: speed.by_class(candidate, served) for candidate in candidates}
    problems = dict(failed)
    for candidate in candidates:
        problem = _problem(reference, candidate, asked) or _slowness(candidate, speeds[candidate.step], asked, served)
        if problem is not None:
            problems[candidate.step] = f"{problem} ({_figures(candidate, speeds[candidate.step])})"
    choice = quality.choose(
        _merits(reference, reference, {}),
        [_merits(reference, candidate, speeds[candidate.step]) for candidate in candidates],
        problems,
        asked,
    )
    by_name = {found.step: found for found in candidates}
    reasons = dict(choice.reasons)
    kept = {name: reasons[name] for name in choice.pareto if name != reference.step}
    rejected = {name: why for name, why in reasons.items() if name not in kept and name != reference.step}
    if choice.chosen in by_name:
        why = f"{choice.chosen}: {_figures(by_name[choice.chosen], speeds[choice.chosen])}"
    else:
        others = "; ".join(f"{name}: {why}" for name, why in list((rejected | kept).items())[:_MAX_SHOWN])
        why = f"{reference.step}: {others or 'there was no other candidate'}"
    kept[reference.step] = reasons.get(reference.step, "")
    why = "; ".join(
        [why, *(f"not measured on {each.machine}: {each.failed}" for each in served.classes if each.failed)]
    )
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
    return None


def _slowness(candidate: Found, speeds: Mapping[str, Speed], policy: quality.Policy, served: Served) -> str | None:
    """Why it is not fast enough where it would serve, None if it is."""
    for each in served.classes:
        if candidate.step in each.problems:
            return f"on {each.machine} it does not run: {each.problems[candidate.step]}"
    if policy.objective not in {"latency", "throughput"}:
        return None
    found = [(ratio, size, where) for where, each in speeds.items() for size, ratio in each.ratios.items()]
    ratio, size, where = min(found, default=(1.0, 0, HERE))
    if ratio >= _SLOWER:
        return None
    place = "" if where == HERE else f" on {where}"
    return f"it is slower than fp32 at batch size {size}{place}: {ratio:.2f}x"


def worth_measuring(reference: Found, candidates: Sequence[Found], policy: Policy) -> list[str]:
    """Those of the candidates that speed decides on: all else of them passes."""
    asked = _asked(policy)
    return [each.step for each in candidates if _problem(reference, each, asked) is None]


def _merits(reference: Found, candidate: Found, speeds: Mapping[str, Speed]) -> Figures:
    """What candidates are held against each other by.

    Latency is that of fp32 at one row divided by the speedup, which is a mean over the batch sizes: what was measured
    at another time, or by another machine, still compares. Of several classes that which gains least counts.
    """
    own, fp32 = _measured(candidate), _measured(reference)
    alone_s = next(iter(each.p50_s for each in fp32.latencies), 1.0)
    gained = min((each.speedup for each in speeds.values()), default=1.0) or 1e-9
    rows_per_s = own.throughput_rows_s or 0.0
    if set(speeds) - {HERE}:
        rows_per_s = (fp32.throughput_rows_s or 0.0) * min(each.throughput for each in speeds.values())
    return Figures(
        variant=candidate.step,
        loss=quality.largest_loss(candidate.comparisons),
        latency_s=alone_s / gained,
        rows_per_s=rows_per_s,
        size_bytes=own.byte_size,
        memory_bytes=own.memory_bytes,
    )


def _measured(found: Found) -> Measurements:
    assert found.measurements is not None  # noqa: S101 - for the type checker: what failed is not decided on
    return found.measurements


def _figures(candidate: Found, speeds: Mapping[str, Speed]) -> str:
    gating = [each for each in candidate.comparisons if each.gates][:_MAX_SHOWN]
    shares = (f"{each.metric} {each.candidate.value:.5f}" for each in gating)
    quick = " and ".join(
        f"{each.speedup:.2f}x" + ("" if where == HERE else f" on {where}") for where, each in speeds.items()
    )
    return f"{quick or 'unknown speed'} at {' and '.join(shares) or 'unknown quality'}"
