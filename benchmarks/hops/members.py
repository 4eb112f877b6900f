"""Worker processes under test, and the gateway that asks them.

`Member` is one worker process with the facts it printed; `Gateway` produces requests and waits for their replies as
the platform's gateway does: pub/sub first, and a read of what is still pending once a second, because pub/sub forgets.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from redis.exceptions import RedisError

from benchmarks.hops import kit

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

START_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Stage:
    """The names one run uses."""

    servers: kit.Servers
    topic: str
    outcomes: str
    group: str
    channel: str

    @classmethod
    async def create(cls, servers: kit.Servers) -> "Stage":
        """Four request partitions, four outcome partitions, a group and a reply channel nobody else uses."""
        name = kit.unique("run")
        stage = cls(servers, f"{name}.requests", f"{name}.outcomes", f"{name}.group", f"{name}.gateway")
        await kit.create_topics(servers, {stage.topic: 4, stage.outcomes: 4})
        return stage


@dataclass(slots=True)
class Member:
    """A worker process and what it said."""

    name: str
    process: asyncio.subprocess.Process
    facts: list[dict[str, Any]] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """Collect facts until the process ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.facts.append(json.loads(line))
            self.news.set()

    async def complain(self) -> None:
        """Collect what the client libraries logged (warnings and errors), so that findings can quote it."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.noise.append(line.decode().rstrip())

    async def said(self, event: str, *, after: int = 0) -> dict[str, Any]:
        """Wait for the first such fact from number `after` on."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                self.news.clear()
                for fact in self.facts[after:]:
                    if fact["event"] == event:
                        return fact
                await self.news.wait()

    def errors(self) -> list[str]:
        """The distinct errors it met, in order."""
        found = (f"{f.get('where', 'append')}: {f['error']}" for f in self.facts if "error" in f)
        return list(dict.fromkeys(found))


def options(stage: Stage, name: str, extra: Iterable[str]) -> list[str]:
    """The worker's command line."""
    named = {"kafka": stage.servers.kafka, "redis": stage.servers.redis, "topic": stage.topic}
    named |= {"outcomes": stage.outcomes, "group": stage.group, "channel": stage.channel, "name": name}
    return [part for key, value in named.items() for part in (f"--{key}", value)] + list(extra)


@contextlib.asynccontextmanager
async def member(stage: Stage, name: str, *extra: str) -> AsyncIterator[Member]:
    """A running worker; killed at the end whatever state it is in."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.hops.worker",
        *options(stage, name, extra),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    one = Member(name, process)
    listening = [asyncio.create_task(one.listen()), asyncio.create_task(one.complain())]
    try:
        yield one
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*listening)


class Gateway:
    """Asks and waits. `async with` starts and stops its clients."""

    def __init__(self, stage: Stage, *, settings: dict[str, Any] | None = None) -> None:
        self.stage = stage
        self.settings = settings or {}
        self.pending: dict[bytes, asyncio.Future[None]] = {}
        self.errors: dict[str, int] = {}
        self.acked: list[tuple[float, int]] = []
        self._exit = contextlib.AsyncExitStack()
        self.producer: AIOKafkaProducer = None
        self.redis = kit.redis_client(stage.servers)

    async def __aenter__(self) -> Self:
        self.producer = await self._exit.enter_async_context(kit.producer(self.stage.servers, **self.settings))
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._reread())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._exit.aclose()
        await self.redis.aclose()

    async def ask(self, number: int) -> float:
        """Send request `number` and wait for its reply; milliseconds."""
        id_ = b"%d" % number
        answered = self.pending[id_] = asyncio.get_running_loop().create_future()
        started = kit.now_ms()
        await self.producer.send_and_wait(self.stage.topic, b"x" * 1000, key=id_)
        self.acked.append((kit.now_ms(), number))
        await answered
        return kit.now_ms() - started

    @contextlib.asynccontextmanager
    async def asking(self, rate_per_s: float, *, patience_s: float = 60) -> AsyncIterator[None]:
        """Ask at a steady rate meanwhile; afterwards wait for the answers, and note failures and what stays open."""
        lanes: set[asyncio.Task[None]] = set()

        async def ask(number: int) -> None:
            try:
                await self.ask(number)
            except Exception as err:  # noqa: BLE001  (which errors there are is the question)
                self.note("produce", err)

        async def forever() -> None:
            for number in itertools.count():
                lanes.add(asyncio.create_task(ask(number)))
                await asyncio.sleep(1 / rate_per_s)

        streaming = asyncio.create_task(forever())
        try:
            yield
        finally:
            streaming.cancel()
            _, stuck = await asyncio.wait(lanes, timeout=patience_s)
            for task in stuck:
                self.note("unanswered", TimeoutError(f"after {patience_s} s"))
                task.cancel()

    def note(self, where: str, err: BaseException) -> None:
        """Count an error by its kind."""
        key = f"{where}: {type(err).__name__}: {str(err)[:120]}"
        self.errors[key] = self.errors.get(key, 0) + 1

    def _answer(self, ids: Iterable[bytes]) -> None:
        for id_ in ids:
            waiter = self.pending.pop(id_, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    async def _listen(self) -> None:
        pubsub = self.redis.pubsub()
        await pubsub.subscribe(self.stage.channel)
        while True:
            try:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
            except RedisError as err:
                self.note("pub/sub", err)
                await asyncio.sleep(0.1)
            else:
                self._answer(message["data"].split() if message else ())

    async def _reread(self) -> None:
        while True:
            await asyncio.sleep(1)
            waiting = list(self.pending)[:500]
            if not waiting:
                continue
            try:
                found = await self.redis.mget([f"hops:result:{self.stage.topic}:{id_.decode()}" for id_ in waiting])
            except RedisError as err:
                self.note("re-read", err)
            else:
                self._answer(id_ for id_, value in zip(waiting, found, strict=True) if value)
