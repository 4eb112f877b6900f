"""A row's class, and its reason. Pure.

| class | when |
|---|---|
| identical | the digest of the outputs is the recorded one; or it failed then and fails now with the same code |
| within_tolerance | it is not, but the recorded outputs are there and no number is further away than allowed |
| changed | it is not, and nothing about the machine explains that |
| not_reproducible | it could not run as it did, or it ran on another kind of machine and differs |

Another ISA or runtime is no reason by itself: what gives the recorded bits is identical, wherever it ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from services.audit.replay.differences import within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.audit.replay.differences import Difference
    from shared.outcome_events import Receipt, Runtime
    from shared.replay_events import ReplayedRow, ReplayRan

Class = Literal["identical", "within_tolerance", "changed", "not_reproducible"]
CLASSES: Final[tuple[Class, ...]] = ("identical", "within_tolerance", "changed", "not_reproducible")
_ON_A_CPU: Final = ("CPUExecutionProvider", "cpu")
_COMPUTED: Final = ("execution_failed", "invalid_input")
"""Failures that say something about the request and the model, and not about a moment."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one row."""

    receipt: Receipt
    verdict: Class
    reason: str = ""
    replayed_sha256: str | None = None
    infer_ns: int | None = None
    worker: str = ""
    differences: tuple[Difference, ...] = ()

    @property
    def max_abs(self) -> float | None:
        """The largest distance between two numbers of the outputs, where it is known."""
        return max((each.max_abs for each in self.differences if each.max_abs is not None), default=None)


def not_reproducible(receipt: Receipt, reason: str) -> Verdict:
    """On a row that did not run."""
    return Verdict(receipt, "not_reproducible", reason)


def of_row(
    receipt: Receipt,
    ran: ReplayRan,
    row: ReplayedRow,
    found: Sequence[Difference] | None,
    tolerance: float,
) -> Verdict:
    """The verdict on a row that ran; `found` is what differs from the recorded outputs, None if these are gone."""
    verdict, reason = _judged(receipt, ran, row, found, tolerance)
    return Verdict(receipt, verdict, reason, row.output_sha256, row.infer_ns, ran.worker, tuple(found or ()))


def _judged(
    receipt: Receipt, ran: ReplayRan, row: ReplayedRow, found: Sequence[Difference] | None, tolerance: float
) -> tuple[Class, str]:
    if receipt.status != "succeeded":
        return _of_failed(receipt, row)
    if row.error_code in {"run_timeout", "cancelled"}:
        return "not_reproducible", f"{row.error_code}: {row.error}"
    if row.error_code is not None:
        return "changed", f"it fails now: {row.error_code}: {row.error}"
    if row.output_sha256 == receipt.output_sha256:
        return "identical", ""
    if found and tolerance and within(found, tolerance):
        return "within_tolerance", _in_words(found)
    if machine := other_machine(receipt.runtime, ran):
        return "not_reproducible", "; ".join([machine, *([_in_words(found)] if found else [])])
    return "changed", _changed(receipt, ran, found)


def _of_failed(receipt: Receipt, row: ReplayedRow) -> tuple[Class, str]:
    if receipt.error_code not in _COMPUTED:
        return "not_reproducible", f"it failed with {receipt.error_code}, which depends on the moment"
    if row.error_code == receipt.error_code:
        return "identical", ""
    return "changed", f"it failed with {receipt.error_code}, and now {row.error_code or 'succeeds'}"


def _changed(receipt: Receipt, ran: ReplayRan, found: Sequence[Difference] | None) -> str:
    words = ["the recorded outputs are gone, digests differ" if found is None else _in_words(found)]
    if ran.artifact_sha256 != receipt.artifact_sha256:
        words.append(f"the stored artefact has digest {(ran.artifact_sha256 or '')[:12]}…")
    return "; ".join(words)


def _in_words(found: Sequence[Difference]) -> str:
    return "; ".join(
        f"{each.output}: {each.what}"
        if each.what
        else f"{each.output}: {each.elements} of {each.of} differ"
        + ("" if each.max_abs is None else f", by {each.max_abs:.3g} at most")
        for each in found
    )


def other_machine(recorded: Runtime | None, ran: ReplayRan) -> str:
    """What is different about where it ran, in words; nothing if nothing is."""
    now = ran.runtime
    if recorded is None or now is None:
        return "the runtime is not known"
    words = [
        f"other {what}: {new}, recorded {old}"
        for what, old, new in (
            ("ISA", recorded.isa, now.isa),
            ("engine", recorded.engine, now.engine),
            ("runtime version", recorded.version, now.version),
            ("provider", recorded.provider, now.provider),
            ("number of threads", recorded.threads, now.threads),
            ("options", dict(sorted(recorded.options.items())), dict(sorted(now.options.items()))),
        )
        if old != new
    ]
    if recorded.provider not in _ON_A_CPU:
        words.append("recorded without deterministic kernels")
    if not ran.deterministic:
        words.append(f"{now.provider} has no deterministic kernels for it")
    return "; ".join(words)
