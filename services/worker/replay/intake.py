"""Replays from the log: taken when the lane is idle, run below all live work, answered on `replay-results`.

**At most once.** Positions are committed before a batch runs, not after: a batch that ends this process must not come
again by itself, to one worker after the other, and take live work down with it. Whoever asked sees that an answer is
missing and asks again, a bounded number of times; a batch's id tells repeats.

**Below live work.** A batch waits until no request does, but not for ever: after `_PATIENCE_S` it runs all the same, so
an audit ends under full load too. While there is live work, be it a request now and then, replays pause thirty times
as long as they take: they have a thirtieth of the time, and a few of a hundred requests come upon one. Such a request
waits for a run of the model, but not for the whole batch to be decoded and hashed: between members the loop looks for
others. (Batches that take long have a quarter of the time.)
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import KafkaError

from services.worker.engine import EngineStuck
from services.worker.replay import batch
from shared import kafka, logs, topics
from shared.codec import cloud_event_headers, decode_event, encode_event
from shared.errors import AiaasError, InvalidInput, LogUnavailable, UnknownVersion
from shared.replay_events import ReplayRan, ReplayRequested
from shared.steady_producer import SteadyProducer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

    from services.worker.lane import Lane
    from services.worker.replay.pinned import Pinned, PinnedVariant
    from services.worker.settings import WorkerSettings
    from shared.artifacts import ArtifactStore
    from shared.dead_letters import DeadLetters
    from shared.registry import Variant
    from shared.registry_log import RegistryLog
    from shared.tensors import Array

    Sent = tuple[AIOKafkaProducer, asyncio.Future[Any]]
    """An answer on its way, and by whom."""

_AT_ONCE: Final = 16
"""Batches taken, and so lost if this process ends: they are asked for again."""
_POLL_MS: Final = 5000
_KEEP_ALIVE_S: Final = 1.0
_PATIENCE_S: Final = 2.0
_PAUSES: Final = 30.0
"""Times as long as a batch took, before the next one, while there is live work."""
_LONG_PAUSE_S: Final = 1.0
_LONG_PAUSES: Final = 3.0
"""Times as long, if a pause is longer than that: an audit of a slow model ends, too."""
_LIVE_S: Final = 1.0
"""Live work is there for so long after a run of it: the next request may come at any moment."""
_FORGET_S: Final = 60.0
"""Without a replay for so long, what they ran on goes out of memory."""
_BATCH_BYTES: Final = 1_000_000


class ReplayIntake:
    """The consumer of `replays`."""

    def __init__(
        self,
        settings: WorkerSettings,
        log: RegistryLog,
        lane: Lane,
        pinned: Pinned,
        store: ArtifactStore,
        dead_letters: DeadLetters,
        executor: Executor,
    ) -> None:
        self._settings = settings
        self._log = log
        self._lane = lane
        self._pinned = pinned
        self._store = store
        self._dead_letters = dead_letters
        self._executor = executor
        self._consumer: AIOKafkaConsumer
        self._producer: SteadyProducer
        self._last_s = 0.0

    async def run(self) -> None:
        """Run replays until cancelled."""
        requests = self._settings.topics.name(topics.REPLAYS)
        options = {
            "group_id": self._settings.topics.replay_group,
            "session_timeout_ms": int(self._settings.session_timeout_s * 1000),
            "heartbeat_interval_ms": int(self._settings.session_timeout_s * 1000 / 4),
        }
        async with AsyncExitStack() as stack:
            make = partial(kafka.consumer, self._settings, requests, **options)
            self._consumer = await stack.enter_async_context(kafka.started(make, "replays"))
            self._producer = await stack.enter_async_context(
                SteadyProducer(self._settings, "replay results", batch_bytes=_BATCH_BYTES)
            )
            while True:
                await self._take()

    async def _take(self) -> None:
        try:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=_AT_ONCE)
            records = [record for some in fetched.values() for record in some]
            if records:
                await self._consumer.commit()
        except KafkaError as err:
            logs.get().warning("waiting for kafka", what="replays", error=repr(err))
            await asyncio.sleep(1)
            return
        if records:
            await self._keeping_alive(records)
            self._last_s = time.monotonic()
        elif time.monotonic() - self._last_s > _FORGET_S:
            self._pinned.clear()

    async def _keeping_alive(self, records: Sequence[ConsumerRecord]) -> None:
        """Answer records, however long that takes: the group hears from us meanwhile."""
        async with asyncio.TaskGroup() as tasks:
            answering = tasks.create_task(self._answer_all(records))
            while not (await asyncio.wait({answering}, timeout=_KEEP_ALIVE_S))[0]:
                if assigned := self._consumer.assignment():
                    self._consumer.pause(*assigned)
                    await self._consumer.getmany(timeout_ms=0)
        if paused := self._consumer.paused():
            self._consumer.resume(*paused)

    async def _answer_all(self, records: Sequence[ConsumerRecord]) -> None:
        sent = []
        for record in records:
            asked = await self._read(record)
            if asked is None:
                continue
            begun_s = time.monotonic()
            sent.append(self._send(await self._answer(asked)))
            took_s = min(time.monotonic() - begun_s, self._settings.max_run_s)
            if self._lane.is_live(_LIVE_S):
                await asyncio.sleep(min(_PAUSES * took_s, max(_LONG_PAUSE_S, _LONG_PAUSES * took_s)))
        await self._await_all(sent)

    async def _read(self, record: ConsumerRecord) -> ReplayRequested | None:
        try:
            return decode_event(ReplayRequested, record.value)
        except InvalidInput as err:
            logs.get().warning("not a replay", topic=record.topic, offset=record.offset, error=err.message)
            try:
                await self._dead_letters.publish(record, err)
            except LogUnavailable as unavailable:
                logs.get().warning("a dead letter was not written", error=unavailable.message)
            return None

    async def _answer(self, asked: ReplayRequested) -> ReplayRan:
        about: dict[str, Any] = {
            "replay_id": asked.replay_id,
            "batch_id": asked.batch_id,
            "attempt": asked.attempt,
            "worker": self._settings.instance,
        }
        try:
            pinned = await self._pinned.get(asked, await self._variant(asked))
            about |= {
                "runtime": pinned.engine.runtime,
                "artifact_sha256": pinned.sha256,
                "deterministic": pinned.engine.deterministic,
            }
            members = await batch.prepare(asked, pinned, self._store, self._settings)
            rows = []
            for some in batch.runs_of(asked, members, pinned):
                rows += await batch.run(some, pinned, self._run_model)
            told = await batch.with_outputs(rows, self._store, self._settings.store_wait_s)
        except AiaasError as err:
            return ReplayRan(**about, status="failed", error_code=err.code, error=err.message[:4000])
        except EngineStuck:
            raise  # the device is gone, for live work too
        except Exception as err:  # noqa: BLE001 - one batch must not stop the others, and no replay the worker
            logs.get().exception("a batch could not be replayed", batch=asked.batch_id)
            return ReplayRan(**about, status="failed", error_code="internal", error=repr(err)[:4000])
        return ReplayRan(**about, status="ran", rows=told)

    async def _variant(self, asked: ReplayRequested) -> Variant:
        registry = self._log.registry
        known = registry.models.get(asked.model)
        if known is None or asked.version not in known.versions:
            registry = await self._log.caught_up()
        version = registry.version(asked.model, asked.version)
        variant = version.variants.get(asked.variant)
        if variant is None:
            raise UnknownVersion(f"version {asked.version} of {asked.model!r} has no variant {asked.variant!r}")
        return variant

    async def _run_model(self, pinned: PinnedVariant, feeds: dict[str, Array]) -> list[Array]:
        async with self._lane.aside(_PATIENCE_S):
            outputs = await pinned.engine.run(feeds, self._executor, self._settings.max_run_s)
        if pinned.processor is None:
            return outputs
        return await asyncio.to_thread(pinned.processor.finish, outputs, feeds)

    def _send(self, ran: ReplayRan) -> Sent:
        topic = self._settings.topics.name(topics.REPLAY_RESULTS)
        headers = cloud_event_headers(event_type=ReplayRan.__name__, source=self._settings.instance)
        producer = self._producer.producer
        return producer, asyncio.ensure_future(
            producer.send_and_wait(topic, encode_event(ran), key=ran.batch_id.encode(), headers=headers)
        )

    async def _await_all(self, sent: Sequence[Sent]) -> None:
        """See the answers into the log. One that gets lost is asked for again."""
        for producer, sending in sent:
            try:
                await sending
            except KafkaError as err:
                logs.get().warning("a replay's answer was not sent", error=repr(err))
                await self._producer.replace(producer)
