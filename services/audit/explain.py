"""As of: the registry at a moment, and which version answered a request, and why, from the log alone.

A receipt says which registry chose (`registry_offset`). The log folded up to there is that registry, and choosing is a
pure function of it and the request's id: so the choice can be made again, and held against the receipt. The reason is
the last event before that changed what answers requests of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from services.audit.records import RecordedRequest, Selection
from shared import requests
from shared.codec import rfc3339
from shared.errors import AiaasError, InvalidInput, UnknownRequest
from shared.registry import Entry, Model, Registry, fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.audit.records import RecordedOutcome
    from services.audit.source import Source


class Decision(NamedTuple):
    """An event that changed which versions of a model answer."""

    entry: Entry
    after: Model


async def registry_at(source: Source, time_ms: int) -> Registry:
    """The registry as it was at a moment, by the broker's clock; see `shared.registry.as_of`."""
    registry = Registry()
    async for entry in source.registry():
        if entry.timestamp_ms > time_ms:
            break
        registry = fold(registry, entry)
    return registry


async def explain(source: Source, request_id: str, model: str | None) -> list[dict[str, Any]]:
    """What is known of a request: one map for each outcome under its id.

    Raises:
        UnknownRequest: no outcome of that id is in the log or the archive.
    """
    selection = Selection(model=model, request_ids=frozenset([request_id]))
    found = [outcome async for outcome in source.outcomes(selection)]
    if not found:
        raise UnknownRequest(f"no outcome of request {request_id!r} is in the log that is kept")
    entries = [entry async for entry in source.registry()]
    return [_explained(outcome, entries) for outcome in found]


def _explained(outcome: RecordedOutcome, entries: Sequence[Entry]) -> dict[str, Any]:
    receipt = outcome.receipt
    return {
        "request_id": receipt.request_id,
        "model": receipt.model_name,
        "version": receipt.model_version,
        "variant": receipt.variant,
        "artifact_sha256": receipt.artifact_sha256,
        "status": receipt.status,
        "error_code": receipt.error_code,
        "request": msgspec.to_builtins(receipt.request),
        "outcome": {"log": outcome.log, "partition": outcome.partition, "offset": outcome.offset},
        "completed_at": receipt.completed_at,
        "worker": receipt.worker,
        "registry_offset": receipt.registry_offset,
        **_why(outcome, entries),
    }


def _why(outcome: RecordedOutcome, entries: Sequence[Entry]) -> dict[str, Any]:
    """Why this version: `why` in a sentence, `decided_by` the event, `agrees` whether choosing again gives the same."""
    receipt = outcome.receipt
    if receipt.registry_offset < 0:
        return {"why": "no version was chosen: the request ended before", "decided_by": None, "agrees": None}
    registry, decision = decided(entries, receipt.model_name, receipt.registry_offset)
    if registry.offset != receipt.registry_offset:
        why = f"the registry's log ends at {registry.offset}, before the {receipt.registry_offset} of the receipt"
        return {"why": why, "decided_by": None, "agrees": None}
    asked, known = _asked(outcome)
    if not known:
        return {"why": "the request is gone, and it may have asked for a version", **_event(decision), "agrees": None}
    try:
        chosen: int | None = registry.route(receipt.model_name, receipt.request_id, asked).number
    except AiaasError as err:
        return {"why": f"nothing could be chosen: {err.message}", **_event(decision), "agrees": None}
    agrees = chosen == receipt.model_version
    if asked is not None:
        return {"why": f"the request asked for version {asked}", "decided_by": None, "agrees": agrees}
    return {"why": _sentence(decision, chosen), **_event(decision), "agrees": agrees}


def decided(entries: Sequence[Entry], model: str, offset: int) -> tuple[Registry, Decision | None]:
    """The registry at an offset of its log, and the last event up to there that changed what answers for a model."""
    registry, decision = Registry(), None
    for entry in entries:
        if entry.offset > offset:
            break
        before = registry.models.get(model)
        registry = fold(registry, entry)
        after = registry.models.get(model)
        if after is not None and _answers(before) != _answers(after):
            decision = Decision(entry, after)
    return registry, decision


def _answers(model: Model | None) -> object:
    return None if model is None else (model.active, dict(model.weights), model.unloaded, model.retired)


def _sentence(decision: Decision | None, chosen: int | None) -> str:
    if decision is None:
        return "nothing in the log ever made a version answer"
    weights = {number: weight for number, weight in decision.after.weights.items() if weight}
    if weights:
        split = ", ".join(f"version {number}: {weight}" for number, weight in sorted(weights.items()))
        return f"traffic was split ({split}), and the request's id falls to version {chosen}"
    return f"version {chosen} was the active one, by {type(decision.entry.event).__name__}"


def _event(decision: Decision | None) -> dict[str, Any]:
    if decision is None or decision.entry.event is None:
        return {"decided_by": None}
    return {
        "decided_by": {
            "event": type(decision.entry.event).__name__,
            "offset": decision.entry.offset,
            "at": rfc3339(decision.entry.timestamp_ms * 1_000_000),
            "fields": msgspec.to_builtins(decision.entry.event, str_keys=True),
        }
    }


def _asked(outcome: RecordedOutcome) -> tuple[int | None, bool]:
    """The version that the request asked for, and whether that is known."""
    if not isinstance(outcome.request, RecordedRequest):
        return None, False
    try:
        headers = requests.from_kafka((name, value or b"") for name, value in outcome.request.headers)
    except InvalidInput:
        return None, False
    return headers.model_version, True
