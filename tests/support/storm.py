"""A storm: steady load through the front door while processes of the stack are killed, stopped and restarted.

`storm` sends requests at a steady pace, over HTTP and straight from Kafka in turns, until there were enough of them and
every disturbance has passed. What must hold afterwards is `audit`'s business.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.tensors import output_digest

from .front_door import OK, body, row
from .waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from shared.tensors import Array

    from .front_door import At, FrontDoor, Outcomes
    from .local import RunningChild, RunningStack

    Disturbance = Callable[["Storm"], Awaitable[None]]

DEADLINE_S = 300.0
"""Longer than any storm: nothing in it may expire."""
SESSION_TIMEOUT_S = 6.0
_MAX_OPEN = 900
"""Requests under way at a time; the gateway lets 1024 in."""


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

    async def moved_on(self, within_s: float = 60.0) -> None:
        """Wait until requests sent after this moment have outcomes in every partition."""
        topic = self.door.topics.requests(self.model)
        ends = await asyncio.to_thread(self.door.log(topic).ends)

        async def look() -> bool:
            await asyncio.to_thread(self.outcomes.poll)
            ours = [at for at in self.outcomes.accepted if at[0] == topic]
            reached = {partition for _, partition, offset in ours if offset >= ends[partition]}
            return reached == set(ends)

        await eventually(look, within_s=within_s, what="outcomes of new requests in every partition")


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
    await eventually(lambda: child.restarts > restarts, within_s=60, what="the gateway's successor")
    await child.wait_ready()
    await storm.moved_on()


async def _kill(storm: Storm, name: str) -> None:
    child = storm.stack.child(name)
    storm.say(f"{name} killed")
    await child.kill()
    await child.wait_ready()
    storm.say(f"{name} is back")
    await storm.moved_on()


THE_FULL_STORM: tuple[Disturbance, ...] = (
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
    disturbances: Sequence[Disturbance],
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


async def _disturb(raging: Storm, disturbances: Sequence[Disturbance], requests: int) -> None:
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
