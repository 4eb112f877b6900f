"""A storm: steady load through the front door while processes of the stack are killed, stopped and restarted.

`storm` sends requests at a steady pace, over HTTP and straight from Kafka in turns, until there were enough of them and
every disturbance has passed. `audit` then holds what callers were told against the outcome log, the results, ONNX
Runtime and the monitor, and returns every violation as a sentence.

What must hold. Every record of the request topic has exactly one accepted outcome, so every acknowledged request has.
Its result is what ONNX Runtime makes of the same batch, bit by bit, and has the digest of its receipt. HTTP callers got
that result or an honest 5xx; `broken` allows for connections that a killed gateway broke.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from shared.errors import Unavailable
from shared.tensors import output_digest, to_numpy

from .front_door import OK, body, outputs_of, row
from .waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from shared.events import Receipt
    from shared.tensors import Array

    from .front_door import At, FrontDoor, Outcomes
    from .local import RunningChild, RunningStack

DEADLINE_S = 300.0
"""Longer than any storm: nothing in it may expire."""
SESSION_TIMEOUT_S = 6.0
_MAX_OPEN = 900
_SETTLED_S = 90.0
_POLLERS = 32
_HONEST = frozenset({503})
"""Statuses that a caller may get instead of an answer while something is down: nothing else is wrong with these."""


@dataclass(slots=True)
class Sent:
    """One request as its sender knows it: `at` for Kafka, `status` and `outputs` for HTTP."""

    inputs: dict[str, Array]
    id: str | None = None
    at: At | None = None
    status: int | None = None
    code: str | None = None
    error: str | None = None
    version: int | None = None
    digest: str | None = None


@dataclass
class Storm:
    """A storm under way."""

    stack: RunningStack
    door: FrontDoor
    model: str
    sent: list[Sent] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    outcomes: Outcomes = field(init=False)
    began_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.outcomes = self.door.outcomes()

    def say(self, what: str) -> None:
        """Note what happens, with the time."""
        self.log.append(f"{time.monotonic() - self.began_s:6.1f} s  {len(self.sent):6d} sent  {what}")

    def workers(self) -> list[RunningChild]:
        """The workers of a stack with two."""
        return [self.stack.child(f"worker-{number}") for number in (1, 2)]

    async def moved_on(self, within_s: float = 40.0) -> None:
        """Wait until requests sent after this moment have outcomes in every partition."""
        requests = self.door.log(self.door.topics.requests(self.model))
        ends = await asyncio.to_thread(requests.ends)

        async def look() -> bool:
            await asyncio.to_thread(self.outcomes.poll)
            reached = {
                partition
                for topic, partition, offset in self.outcomes.accepted
                if self._beyond(topic, partition, offset, ends)
            }
            return reached == set(ends)

        await eventually(look, within_s=within_s, what="outcomes of new requests in every partition")

    def _beyond(self, topic: str, partition: int, offset: int, ends: dict[int, int]) -> bool:
        return topic == self.door.topics.requests(self.model) and offset >= ends[partition]


Disturbance = "Callable[[Storm], Awaitable[None]]"


# --------------------------------------------------------------------------- what goes wrong


async def kill_a_worker(storm: Storm) -> None:
    """SIGKILL, in turns."""
    child = storm.workers()[sum("worker killed" in line for line in storm.log) % 2]
    storm.say("worker killed")
    await child.kill()
    await child.wait_ready()


async def stop_a_worker(storm: Storm) -> None:
    """SIGSTOP beyond the session timeout, until the other has all partitions, then SIGCONT: the zombie."""
    child = storm.workers()[1]
    storm.say("worker stopped")
    child.signal(signal.SIGSTOP)
    try:
        stopped_s = time.monotonic()
        await storm.moved_on()
        await asyncio.sleep(max(0.0, 1.5 * SESSION_TIMEOUT_S - (time.monotonic() - stopped_s)))
    finally:
        child.signal(signal.SIGCONT)
    storm.say("worker continued")
    await storm.moved_on()


async def kill_redis(storm: Storm) -> None:
    """SIGKILL; it comes back with what its append-only file holds."""
    await _kill(storm, "redis")


async def kill_kafka(storm: Storm) -> None:
    """SIGKILL; it comes back with its log."""
    await _kill(storm, "kafka")


async def hang_redis(storm: Storm, hang_s: float = 10.0) -> None:
    """SIGSTOP for ten seconds: connections stay open and nothing answers."""
    child = storm.stack.child("redis")
    storm.say("redis hung")
    child.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(hang_s)
    finally:
        child.signal(signal.SIGCONT)
    storm.say("redis continued")
    await storm.moved_on()


async def kill_the_gateway(storm: Storm) -> None:
    """SIGKILL, with callers waiting."""
    await _kill(storm, "gateway")


async def restart_the_gateway(storm: Storm) -> None:
    """SIGTERM, with callers waiting; supervision starts it again."""
    child = storm.stack.child("gateway")
    restarts = child.restarts
    storm.say("gateway told to stop")
    child.signal(signal.SIGTERM)
    await eventually(lambda: child.restarts > restarts, within_s=40, what="the gateway's successor")
    await child.wait_ready()
    await storm.moved_on()


async def _kill(storm: Storm, name: str) -> None:
    child = storm.stack.child(name)
    storm.say(f"{name} killed")
    await child.kill()
    await child.wait_ready()
    storm.say(f"{name} is back")
    await storm.moved_on()


THE_FULL_STORM: tuple[Callable[[Storm], Awaitable[None]], ...] = (
    kill_a_worker,
    kill_a_worker,
    kill_redis,
    kill_a_worker,
    stop_a_worker,
    kill_a_worker,
    kill_kafka,
    kill_a_worker,
)
"""Five workers killed, one stopped and continued, Redis and the broker restarted once each."""


# --------------------------------------------------------------------------- the load


async def storm(
    stack: RunningStack,
    door: FrontDoor,
    model: str,
    *,
    requests: int,
    rate_per_s: float,
    disturbances: Sequence[Callable[[Storm], Awaitable[None]]],
) -> Storm:
    """Send at least `requests` requests while the disturbances pass, spread evenly over them."""
    raging = Storm(stack, door, model)
    disturbing = asyncio.create_task(_disturb(raging, disturbances, requests))
    places = asyncio.Semaphore(_MAX_OPEN)
    async with asyncio.TaskGroup() as senders:
        began_s = time.monotonic()
        while len(raging.sent) < requests or not disturbing.done():
            await places.acquire()
            sent = Sent(row(len(raging.sent)))
            sending = senders.create_task(
                (_over_http, _over_kafka)[len(raging.sent) % 2](raging, sent, len(raging.sent))
            )
            sending.add_done_callback(lambda _: places.release())
            raging.sent.append(sent)
            await asyncio.sleep(began_s + len(raging.sent) / rate_per_s - time.monotonic())
        await disturbing
    raging.say("everybody was answered")
    return raging


async def _disturb(raging: Storm, disturbances: Sequence[Callable[[Storm], Awaitable[None]]], requests: int) -> None:
    for number, disturb in enumerate(disturbances, start=1):
        due = number * requests // (len(disturbances) + 1)
        while len(raging.sent) < due:  # noqa: ASYNC110 - the load has a clock, not an event
            await asyncio.sleep(0.02)
        await disturb(raging)


async def _over_http(raging: Storm, sent: Sent, _number: int) -> None:
    answer = await raging.door.infer(raging.model, sent.inputs, timeout=int(DEADLINE_S * 1e6))
    sent.id, sent.status, sent.version = answer.id, answer.status, answer.version
    sent.code, sent.error = answer.code, answer.error
    sent.digest = output_digest(answer.outputs) if answer.status == OK else None


async def _over_kafka(raging: Storm, sent: Sent, number: int) -> None:
    sent.id = f"{raging.model}-storm-{number}-{raging.began_s}"
    deadline_ms = str(int((time.time() + DEADLINE_S) * 1000))
    sent.at = await raging.door.send(
        raging.model,
        body(sent.inputs),
        key=sent.id.encode(),
        ce_id=sent.id,
        content_type="application/json",
        deadline=deadline_ms,
    )


# --------------------------------------------------------------------------- the audit


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


Run = "Callable[[dict[str, Array]], Array]"


async def audit(raging: Storm, run: Callable[[dict[str, Array]], Array], *, broken: bool = False) -> Audit:
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
    ends = await asyncio.to_thread(raging.door.log(topic).ends)
    records = sum(ends.values())

    async def look() -> dict[At, Receipt]:
        await asyncio.to_thread(raging.outcomes.poll)
        ours = {at: receipt for at, receipt in raging.outcomes.accepted.items() if at[0] == topic}
        assert len(ours) >= records, f"{len(ours)} outcomes of {records} requests"
        return ours

    try:
        accepted: dict[At, Receipt] = await eventually(look, within_s=_SETTLED_S, what="an outcome of every request")
    except AssertionError as err:
        found.violations.append(str(err))
        accepted = {at: receipt for at, receipt in raging.outcomes.accepted.items() if at[0] == topic}
    wanted = {(topic, partition, offset) for partition, end in ends.items() for offset in range(end)}
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
        honest = sent.status in _HONEST and sent.code in _CODES
        found.expect(honest, f"a caller got {sent.status} {sent.code}: {sent.error}")


_CODES = {error.code for error in Unavailable.__subclasses__()}


def _expected(
    found: Audit,
    known: dict[str | None, Sent],
    by_id: dict[str, list[Receipt]],
    run: Callable[[dict[str, Array]], Array],
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
    ends = {str(partition): end for partition, end in outcomes.log.ends().items() if end}

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
