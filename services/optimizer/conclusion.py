"""The end of an attempt: from what all steps found to the events that say what serves and why nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from services.optimizer import gate
from services.optimizer.actions import COMPARE, ELSEWHERE, REFERENCE, Compare, Convert, Draw, Elsewhere, Sample, Train
from services.optimizer.messages import Served
from shared.events import Comparison, Estimate, ModelReady, OnWorker, VariantReady, VariantRejected
from shared.registry import CANONICAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.optimizer.documents import Document
    from services.optimizer.plan import Plan
    from shared.artifacts import Artifact
    from shared.events import AttemptEvent
    from shared.optimization import Policy
    from shared.quality import estimates as quality
    from shared.registry import Version

_NO_CANDIDATES = (Draw, Convert, Train, Compare, Sample, Elsewhere)


def policy_of(upload: Policy | None, model: Policy | None, settings: Policy) -> Policy:
    """What a version is judged by: what its upload says, else its model, else the optimizer."""
    policy = settings if model is None else model.over(settings)
    return policy if upload is None else upload.over(policy)


def events(
    version: Version,
    owner: str,
    plan: Plan,
    documents: Mapping[str, Document],
    files: Mapping[str, Artifact],
    policy: Policy,
) -> tuple[AttemptEvent, ...]:
    """What became of the version; the reference's step is done."""
    candidates = [spec.name for spec in plan.steps if not isinstance(spec.action, _NO_CANDIDATES)]
    # An earlier owner with other means may have tried more.
    candidates += [name for name, each in documents.items() if each.found.measurements and name not in candidates]
    failed = dict(plan.refused)
    measured = {}
    for name in candidates:
        document = documents.get(name)
        if document is None:
            failed[name] = f"not tried: the time for candidates, {policy.time_budget_s or 0:g} s, was over"
        elif document.found.measurements is None:
            failed[name] = document.found.failed or "it was not measured"
        else:
            measured[name] = document
    found = [document.found for name, document in measured.items() if name != REFERENCE]
    asked = documents.get(ELSEWHERE)
    served = (None if asked is None else asked.found.served) or Served()
    decision = gate.decide(measured[REFERENCE].found, found, failed, policy, served)
    measured = {name: _with_workers(document, served) for name, document in measured.items()}
    common: dict[str, Any] = {
        "model": version.model,
        "version": version.number,
        "attempt": version.attempt,
        "owner": owner,
    }
    ready = [
        _ready(common, document, files[name], decision.kept.get(name, ""))
        for name, document in measured.items()
        if name not in decision.rejected
    ]
    rejected = [
        _rejected(common, name, why, measured.get(name), files.get(name)) for name, why in decision.rejected.items()
    ]
    comparison = _comparison(version, documents.get(COMPARE), policy)
    converted = None if (canonical := documents.get(CANONICAL)) is None else canonical.found.conversion
    reason = decision.reason
    if converted is not None and converted.problem:
        reason = f"torch serves it as it is, since it did not become ONNX: {converted.problem}"
    return (
        *ready,
        *rejected,
        ModelReady(**common, variant=decision.chosen, reason=reason[:4000], comparison=comparison),
    )


def _with_workers(document: Document, served: Served) -> Document:
    """A candidate's figures, with those of workers of other classes."""
    found = document.found
    assert found.measurements is not None  # noqa: S101 - for the type checker: it is one that was measured
    there = tuple(
        OnWorker(
            machine=each.machine,
            worker=each.worker,
            latencies=each.latencies.get(found.step, ()),
            problem=each.problems.get(found.step, "")[:4000],
        )
        for each in served.classes
        if found.step in each.latencies or found.step in each.problems
    )
    if not there:
        return document
    return replace(document, found=replace(found, measurements=replace(found.measurements, on_workers=there)))


def _ready(common: dict[str, Any], document: Document, file: Artifact, why: str) -> VariantReady:
    found = document.found
    assert found.signature is not None and found.measurements is not None  # noqa: S101, PT018 - `Found` sees to it
    return VariantReady(
        **common,
        variant=found.step,
        artifact=file,
        signature=found.signature,
        batch_cap=found.batch_cap,
        measurements=replace(found.measurements, byte_size=file.byte_size),
        provenance=document.provenance,
        reason=why[:4000],
        engine=found.engine,
    )


def _rejected(
    common: dict[str, Any], name: str, why: str, document: Document | None, file: Artifact | None
) -> VariantRejected:
    measurements = None if document is None else document.found.measurements
    if measurements is not None and file is not None:
        measurements = replace(measurements, byte_size=file.byte_size)
    made_of = None if document is None else document.provenance
    return VariantRejected(**common, variant=name, reason=why[:4000], measurements=measurements, provenance=made_of)


def _comparison(version: Version, document: Document | None, policy: Policy) -> Comparison | None:
    """The update beside its parent, by the first metric that gates."""
    compared = () if document is None else document.found.comparisons
    gating = next((each for each in compared if each.gates and each.loss is not None), None)
    if gating is None or gating.loss is None or version.parent is None:
        return None
    parents = gating.reference or gating.candidate
    return Comparison(
        parent=version.parent,
        metric=gating.metric,
        own=_estimate(gating.candidate, gating.rows),
        parents=_estimate(parents, gating.rows),
        worse=gating.loss.value > (policy.max_loss or 0.0),
    )


def _estimate(found: quality.Estimate, rows: int) -> Estimate:
    return Estimate(value=found.value, low=found.low, high=found.high, rows=rows)
