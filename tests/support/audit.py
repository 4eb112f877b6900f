"""What must hold after a storm, whatever died in it; each violation is a sentence.

Every record of the request topic has exactly one accepted outcome, so every acknowledged request has. Its result is
what ONNX Runtime makes of the same batch, bit by bit, and has the digest of its receipt. HTTP callers got that result
or an honest 5xx; `broken` allows for connections that a killed gateway broke. The monitor says what the outcome log
says.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from shared.errors import Unavailable
from shared.tensors import output_digest, to_numpy

from .front_door import OK, outputs_of
from .waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.outcome_events import Receipt
    from shared.tensors import Array

    from .front_door import At, FrontDoor, Outcomes
    from .storm import Sent, Storm

    Run = Callable[[dict[str, Array]], Array]

_SETTLED_S = 90.0
_POLLERS = 32
_UNAVAILABLE = 503
_HONEST = frozenset(error.code for error in Unavailable.__subclasses__())
"""What a caller may be told instead of an answer while something is down, with 503."""


@dataclass
class Audit:
    """What was found. `violations` must be empty."""

    violations: list[str] = field(default_factory=list)
    requests: int = 0
    outcomes: int = 0
    repeats: int = 0
    reexecuted: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """HTTP answers by status."""
    batches: int = 0
    """Batches whose members are all known, compared bit by bit."""

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note a violation unless it holds."""
        if not holds:
            self.violations.append(otherwise)


async def audit(raging: Storm, run: Run, *, broken: bool = False) -> Audit:
    """Hold a storm's traces against each other; `run` is ONNX Runtime called directly."""
    found = Audit(requests=len(raging.sent))
    accepted = await _all_outcomes(raging, found)
    by_id: dict[str, list[Receipt]] = defaultdict(list)
    for receipt in accepted.values():
        by_id[receipt.request_id].append(receipt)
    for sent in raging.sent:
        _check_acknowledged(found, sent, accepted, by_id, broken=broken)
    known = {sent.id: sent for sent in raging.sent if sent.id in by_id}
    expected = _expected(found, known, by_id, run)
    await _check_results(raging, found, by_id, expected)
    await check_monitor(raging.door, raging.outcomes, found)
    return found


async def _all_outcomes(raging: Storm, found: Audit) -> dict[At, Receipt]:
    """The accepted outcomes of the model's requests, once every record of its topic has one."""
    topic = raging.door.topics.requests(raging.model)
    records = await asyncio.to_thread(raging.door.log(topic).poll)
    wanted = {(topic, int(record.partition() or 0), int(record.offset() or 0)) for record in records}

    async def look() -> dict[At, Receipt]:
        await asyncio.to_thread(raging.outcomes.poll)
        ours = {at: receipt for at, receipt in raging.outcomes.accepted.items() if at[0] == topic}
        assert len(ours) >= len(wanted), f"{len(ours)} outcomes of {len(wanted)} requests"
        return ours

    try:
        accepted: dict[At, Receipt] = await eventually(look, within_s=_SETTLED_S, what="an outcome of every request")
    except AssertionError as err:
        found.violations.append(str(err))
        accepted = {at: receipt for at, receipt in raging.outcomes.accepted.items() if at[0] == topic}
    found.expect(set(accepted) == wanted, f"without outcome, or without request: {sorted(set(accepted) ^ wanted)[:9]}")
    found.outcomes, found.repeats = len(accepted), raging.outcomes.repeats
    found.reexecuted = sum(receipt.reexecuted for receipt in accepted.values())
    return accepted


def _check_acknowledged(
    found: Audit, sent: Sent, accepted: dict[At, Receipt], by_id: dict[str, list[Receipt]], *, broken: bool
) -> None:
    receipts = by_id.get(sent.id or "", [])
    found.expect(len(receipts) <= 1, f"{sent.id} has {len(receipts)} accepted outcomes")
    if sent.at is not None:
        mine = accepted.get(sent.at)
        found.expect(mine is not None and mine.request_id == sent.id, f"{sent.id} at {sent.at} has no outcome")
        return
    found.answers[str(sent.status)] += 1
    if sent.status == OK:
        found.expect(len(receipts) == 1, f"{sent.id} was answered and has {len(receipts)} outcomes")
        told = {(receipt.output_sha256, receipt.model_version) for receipt in receipts}
        found.expect(told == {(sent.digest, sent.version)}, f"{sent.id} was answered otherwise than its receipt says")
    elif sent.status is None:
        found.expect(broken, f"a caller's connection broke: {sent.error}")
    else:
        honest = sent.status == _UNAVAILABLE and sent.code in _HONEST
        found.expect(honest, f"a caller got {sent.status} {sent.code}: {sent.error}")


def _expected(
    found: Audit,
    known: dict[str | None, Sent],
    by_id: dict[str, list[Receipt]],
    run: Run,
) -> dict[str, tuple[Array, bool]]:
    """What ONNX Runtime answers, by request id: with the same batch where all members are known (True), else alone."""
    batches: dict[str, list[Receipt]] = defaultdict(list)
    for [receipt] in (receipts for receipts in by_id.values() if len(receipts) == 1):
        if receipt.batch is not None and receipt.request_id in known:
            batches[receipt.batch.id].append(receipt)
    expected: dict[str, tuple[Array, bool]] = {}
    for members in batches.values():
        members.sort(key=lambda receipt: receipt.batch.index if receipt.batch else 0)
        rows = [known[receipt.request_id].inputs["x"] for receipt in members]
        whole = bool(members[0].batch and members[0].batch.size == len(members))
        found.batches += whole
        answers = np.split(run({"x": np.concatenate(rows)}), len(rows))
        expected |= {receipt.request_id: (answers[index], whole) for index, receipt in enumerate(members)}
    return expected


async def _check_results(
    raging: Storm, found: Audit, by_id: dict[str, list[Receipt]], expected: dict[str, tuple[Array, bool]]
) -> None:
    """The result of every outcome, polled by id, is right and has its receipt's digest."""
    left = iter(by_id.items())

    async def poller() -> None:
        for request_id, [receipt, *_] in left:
            state = await raging.door.state(raging.model, request_id)
            found.violations += _wrong(request_id, receipt, state, expected.get(request_id))

    await asyncio.gather(*(poller() for _ in range(_POLLERS)))


def _wrong(
    request_id: str, receipt: Receipt, state: dict[str, Any] | None, expected: tuple[Array, bool] | None
) -> list[str]:
    if receipt.status != "succeeded":
        return [f"{request_id} {receipt.status}: {receipt.error_code}"]
    if state is None or state["result"] is None:
        return [f"{request_id} has an outcome and its result is {state}"]
    outputs = outputs_of(state["result"])
    if output_digest(outputs) != receipt.output_sha256:
        return [f"the result of {request_id} has another digest than its receipt"]
    if expected is None:  # its caller never learnt the id, so nobody knows what was asked
        return []
    answer, (wanted, exactly) = to_numpy(outputs[0]), expected
    right = answer.tobytes() == wanted.tobytes() if exactly else np.allclose(answer, wanted, rtol=1e-4, atol=1e-5)
    return [] if right else [f"{request_id}: {answer.tolist()} instead of {wanted.tolist()}"]


async def check_monitor(door: FrontDoor, outcomes: Outcomes, found: Audit) -> None:
    """The monitor's numbers are those of the outcome log, exactly, in both of its forms."""
    await asyncio.to_thread(outcomes.poll)
    ends = {str(partition): end for partition, end in outcomes.offsets.items()}

    async def caught_up() -> dict[str, Any] | None:
        stats = await door.stats()
        return stats if {p: o for p, o in stats["offsets"].items() if o} == ends else None

    stats: dict[str, Any] = await eventually(caught_up, within_s=40, what="the monitor at the end of the outcome log")
    wanted: Counter[tuple[str, str, str]] = Counter()
    for receipt in outcomes.accepted.values():
        known = receipt.error_code != "unknown_version" and receipt.model_version is not None
        wanted[receipt.model_name, str(receipt.model_version) if known else "", receipt.status] += 1
    told = {
        (series["model"], str(series["version"] or ""), status): count
        for series in stats["models"]
        for status, count in series["outcomes"].items()
    }
    found.expect(told == wanted, f"/v1/stats says {told}, the outcome log {dict(wanted)}")
    repeats = stats["ignored"].get("repeat", 0)
    found.expect(repeats == outcomes.repeats, f"/v1/stats says {repeats} repeats, the outcome log {outcomes.repeats}")
    scraped = {
        (sample.labels["model"], sample.labels["version"], sample.labels["status"]): int(sample.value)
        for family in text_string_to_metric_families(await door.metrics())
        for sample in family.samples
        if sample.name == "aiaas_requests_total"
    }
    found.expect(scraped == wanted, f"/metrics says {scraped}, the outcome log {dict(wanted)}")
