"""One consumer a model: records in, outcomes out, offsets committed.

In:  what queued up is fetched, read into jobs, opened in the partition's ledger, and queued for the lane.
Out: the contiguous run of completed rows is appended to `outcomes`, acknowledged, and only then committed
     (`WHEN_SAVED`). A failed append closes the ledger and starts the partition again at its committed offset.

A writer must never skip: an outcome above a missing one would hide it from every reader for ever. So records that
were fetched before a partition was given up or started again are never taken after it.

On revocation and shutdown: nothing new is taken, what was not started is dropped (its next owner has it), what runs
is finished within a bound, appended and committed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.errors import KafkaError

from services.worker.claims import Room
from services.worker.job import read
from services.worker.ledger import Ledger
from services.worker.reply_copies import check_topic
from services.worker.settle import persistently
from shared import kafka, logs
from shared.background import set_within
from shared.errors import AiaasError, InvalidInput, LogUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aiokafka import ConsumerRecord

    from services.worker.job import Job
    from services.worker.model_server import ModelServer
    from services.worker.reply_copies import ReplyCopies
    from services.worker.settings import WorkerSettings
    from shared.outcomes import OutcomeWriter
    from shared.registry_log import RegistryLog
    from shared.replies import Replies

_POLL_MS = 5000
_HALF_FULL_POLL_MS = 10
"""The same while there is room in one of the two queues only: it won't be long before there is in the other."""
_FULL_POLL_MS = 100
"""The same while there is none in either."""
_HASTY_MS = 10
_AT_ONCE = 256
"""Records taken in one step: some milliseconds in which nothing else runs."""
_MAX_OPEN_ROWS = 8192
"""Rows of one model that wait for an earlier one: what a duplicate that waits for its first may hold up."""
_LEAST_RECORDS = 8
_CATCH_UP_S = 5.0
_NOT_YET = ("uploaded", "optimizing")
"""States of which the log may tell more than we have read."""
_COMMIT_S = 0.25
"""Offsets are committed so often. What a crash leaves uncommitted is taken again by the next owner, found answered in
Redis, and appended once more, which readers skip: a commit a batch would cost more than that ever does."""


class HeldBytes:
    """The request bytes that this worker holds, over all models; apart from the rest those from the artifact store.

    So large tensors wait for each other, but never keep small requests from being taken.
    """

    def __init__(self, limit: int, fetched_limit: int = 0) -> None:
        self.limit = limit
        self.used = 0
        self.fetched = Room(fetched_limit)

    def release(self, jobs: Sequence[Job]) -> None:
        """These jobs hold nothing any more."""
        self.used -= sum([job.size_bytes - job.fetched_bytes for job in jobs])
        if fetched_bytes := sum([job.fetched_bytes for job in jobs]):
            self.fetched.give_back(fetched_bytes)


class Intake(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """The consumer of one model's requests."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        server: ModelServer,
        registry_log: RegistryLog,
        replies: Replies,
        writer: OutcomeWriter,
        copies: ReplyCopies,
        held: HeldBytes,
        queued: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._server = server
        self._registry_log = registry_log
        self._replies = replies
        self._writer = writer
        self._copies = copies
        self._held = held
        self._queued = queued
        self._topics = {settings.topics.requests(server.name, high=high): high for high in (True, False)}
        """Request topics, and whether what is in them goes before the rest."""
        self._consumer: AIOKafkaConsumer
        self._ledgers: dict[TopicPartition, Ledger] = {}
        self._epochs: Counter[TopicPartition] = Counter()
        """How often a partition was given up or started again: records fetched before that must not be taken after."""
        self._deaths: dict[tuple[str, int], int] = {}
        """How often a record, by ledger and offset, has killed a worker."""
        self._in_progress = 0
        self._hasty = False
        self._freed = asyncio.Event()
        """Set when a job ends: there may be room again, or nothing left to wait for."""
        self._finished = asyncio.Event()
        """Set when a job ends: there may be something to append."""
        self._flushing = asyncio.Lock()

    # ------------------------------------------------------------------ life

    async def run(self) -> None:
        """Consume until cancelled, then drain."""
        name = self._server.name
        await kafka.ensure_topics(self._settings, name)
        options = {
            "group_id": self._settings.topics.worker_group(name),
            "group_instance_id": self._settings.instance if self._settings.static_membership else None,
            "session_timeout_ms": int(self._settings.session_timeout_s * 1000),
            "heartbeat_interval_ms": int(self._settings.session_timeout_s * 1000 / 4),
            "rebalance_timeout_ms": int((self._settings.drain_s + 10) * 1000),
            "metadata_max_age_ms": 60_000,  # the topics are there already
        }
        async with kafka.started(
            lambda: kafka.consumer(self._settings, **options), f"requests of {name}"
        ) as self._consumer:
            self._consumer.subscribe(list(self._topics), listener=self)
            flushing = asyncio.create_task(self._flush_for_ever())
            try:
                while True:
                    await self._take()
            finally:
                await self._give_up(list(self._ledgers))
                flushing.cancel()
                await asyncio.gather(flushing, return_exceptions=True)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Kafka takes partitions away: finish what runs, say what is done."""
        await self._give_up(list(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Kafka gives partitions. Their ledgers begin with the first record, in `_take`."""
        logs.get().info(
            "partitions assigned",
            model=self._server.name,
            partitions=sorted(f"{tp.topic}/{tp.partition}" for tp in assigned),
        )

    async def _give_up(self, partitions: Sequence[TopicPartition]) -> None:
        self._epochs.update(partitions)
        ledgers = [self._ledgers.pop(tp) for tp in partitions if tp in self._ledgers]
        for ledger in ledgers:
            self._release(self._server.drop(ledger))
        try:
            async with asyncio.timeout(self._settings.drain_s):
                while self._in_progress:
                    self._freed.clear()
                    await self._freed.wait()
                await self._flush(ledgers)
        except TimeoutError:
            logs.get().warning("partitions given up before all was finished", model=self._server.name)
        finally:
            for ledger in ledgers:
                ledger.close()

    # ------------------------------------------------------------------ in

    async def _take(self) -> None:
        room = {high: self._room(high=high) for high in (True, False)}
        # Without names it is all partitions, those too that are assigned while it waits.
        named, wait_ms = list[TopicPartition](), _POLL_MS
        if min(room.values()) <= 0 and (assigned := self._consumer.assignment()):
            named = [partition for partition in assigned if room[self._topics[partition.topic]] > 0]
            if not named:
                self._freed.clear()
                self._consumer.pause(*assigned)
                await self._consumer.getmany(timeout_ms=0)  # keeps the membership: the consumer is polled
                await set_within(self._freed, _FULL_POLL_MS / 1000)
                return
            if len(named) == len(assigned):
                named = []
            else:
                wait_ms = _HALF_FULL_POLL_MS
        if paused := self._consumer.paused():
            self._consumer.resume(*paused)
        most = min((_AT_ONCE, *(records for records in room.values() if records > 0)))  # without partitions, maybe none
        try:
            fetched = await self._consumer.getmany(*named, timeout_ms=wait_ms, max_records=most)
        except KafkaError as err:
            logs.get().warning("waiting for kafka", what=f"requests of {self._server.name}", error=repr(err))
            await asyncio.sleep(1)
            return
        epochs = self._epochs.copy()
        for partition, records in fetched.items():
            if epochs[partition] == self._epochs[partition]:
                await self._take_partition(partition, records)
        self._mind_the_wait(hasty=self.lag > 0)

    def _mind_the_wait(self, *, hasty: bool) -> None:
        """Fetch in haste while there is a backlog, patiently otherwise: see `kafka.set_fetch_wait`."""
        if hasty is not self._hasty:
            self._hasty = hasty
            patient_ms = self._settings.kafka_fetch_max_wait_ms
            kafka.set_fetch_wait(self._consumer, min(_HASTY_MS, patient_ms) if hasty else patient_ms)

    def _room(self, *, high: bool) -> int:
        if sum(ledger.open_rows for ledger in self._ledgers.values()) >= _MAX_OPEN_ROWS:
            return 0
        if self._held.used >= self._held.limit:
            # Whoever holds nothing may still take a little: one model's backlog must not starve the others.
            return 0 if self._in_progress else _LEAST_RECORDS
        return self._settings.max_queued - self._server.waiting.count(high=high)

    async def _take_partition(self, partition: TopicPartition, records: Sequence[ConsumerRecord]) -> None:
        ledger = self._ledgers.get(partition)
        if ledger is None:
            ledger = await self._open(partition, records[0].offset)
        name, high = self._server.name, self._topics[partition.topic]
        jobs = [read(record, name, ledger, self._death_count(ledger, record), high=high) for record in records]
        await self._catch_up(jobs)
        if ledger is not self._ledgers.get(partition):
            return  # given up or started again meanwhile: these records come again, to whoever owns them
        for job in jobs:
            ledger.open(job.record.offset)
            self._check_reply_topic(job)
        self._in_progress += len(jobs)
        self._held.used += sum(job.size_bytes for job in jobs)
        self._server.arrive(jobs)
        self._queued()

    async def _open(self, partition: TopicPartition, first_offset: int) -> Ledger:
        """A ledger for a partition just assigned, and how often its records have killed a worker."""
        ledger = self._ledgers[partition] = Ledger(partition.topic, partition.partition, first_offset)
        deaths = await persistently(
            "redis",
            lambda: self._replies.count_deaths(self._server.name, self._settings.owner, {ledger.where: first_offset}),
        )
        self._deaths.update(deaths)
        return ledger

    def _death_count(self, ledger: Ledger, record: ConsumerRecord) -> int:
        return self._deaths.get((ledger.where, record.offset), 0) if self._deaths else 0

    async def _catch_up(self, jobs: Sequence[Job]) -> None:
        """Have read the registry's log to its present end if a request knows of something that we don't."""
        if not any(self._is_ahead(job) for job in jobs):
            return
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                registry = await persistently("registry log", self._registry_log.caught_up)
        except TimeoutError as err:
            logs.get().warning("registry not caught up", model=self._server.name, error=repr(err))
            return
        self._server.adopt(registry)

    def _is_ahead(self, job: Job) -> bool:
        registry, headers = self._server.latest, job.headers
        if headers.registry_offset is not None and headers.registry_offset > registry.offset:
            return True
        if headers.model_version is None:
            return False
        known = registry.models.get(job.model)
        version = known.versions.get(headers.model_version) if known is not None else None
        return version is None or version.state in _NOT_YET

    def _check_reply_topic(self, job: Job) -> None:
        if job.error is None and job.headers.reply_topic is not None:
            try:
                check_topic(job.headers.reply_topic, self._settings)
            except InvalidInput as err:
                job.error = err

    @property
    def lag(self) -> int:
        """Records of this worker's partitions that it has not taken yet, as of the last fetch."""
        ledgers = [(tp, ledger) for tp, ledger in self._ledgers.items() if tp in self._consumer.assignment()]
        return sum(max(0, (self._consumer.highwater(tp) or 0) - ledger.taken) for tp, ledger in ledgers)

    # ------------------------------------------------------------------ out

    def positions(self) -> dict[str, int]:
        """The first record of each partition, as `topic/partition`, that has no outcome yet."""
        return {ledger.where: ledger.position for ledger in self._ledgers.values()}

    def completed(self, jobs: Sequence[Job]) -> None:
        """Jobs have their outcome, in their ledgers."""
        self._release(jobs)

    def _release(self, jobs: Sequence[Job]) -> None:
        self._in_progress -= len(jobs)
        self._held.release(jobs)
        self._freed.set()
        self._finished.set()

    async def _flush_for_ever(self) -> None:
        """Append whatever is ready, at once; commit now and then, and when nothing is left to append."""
        next_commit_s = 0.0
        while True:
            self._finished.clear()
            now_s = time.monotonic()
            await self._flush(list(self._ledgers.values()), commit=now_s >= next_commit_s)
            if now_s >= next_commit_s:
                next_commit_s = now_s + _COMMIT_S
            await set_within(self._finished, self._until_commit_s(next_commit_s))

    def _until_commit_s(self, next_commit_s: float) -> float | None:
        """How long the next flush may wait for something to append: for ever if all is committed."""
        if all(ledger.committed == ledger.appended for ledger in self._ledgers.values()):
            return None
        return max(0.0, next_commit_s - time.monotonic())

    async def _flush(self, ledgers: Sequence[Ledger], *, commit: bool = True) -> None:
        """Append what is ready, and commit what is appended."""
        async with self._flushing:
            if ready := [ledger for ledger in ledgers if ledger.is_ready]:
                await asyncio.gather(*(self._append(ledger) for ledger in ready))
            if commit:
                await self._commit(ledgers)

    async def _append(self, ledger: Ledger) -> None:
        ready = ledger.ready()
        if not ready:
            return
        try:
            receipts = [(outcome.request_id, outcome.receipt) for _, outcome in ready]
            await self._writer.append(ledger.topic, ledger.partition, receipts)
        except LogUnavailable as err:
            await self._start_again(ledger, err)
            return
        await self._copies.send([outcome.copy for _, outcome in ready if outcome.copy is not None])
        if not ledger.closed:
            ledger.advance(ready[-1][0])

    async def _commit(self, ledgers: Sequence[Ledger]) -> None:
        offsets = {
            TopicPartition(ledger.topic, ledger.partition): OffsetAndMetadata(ledger.appended, "")
            for ledger in ledgers
            if ledger.appended > ledger.committed
        }
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except KafkaError as err:
            # Fenced, or Kafka is away: outcomes are in the log, and whoever owns the partition repeats some at worst.
            logs.get().warning("not committed", model=self._server.name, error=repr(err))
            return
        for ledger in ledgers:
            ledger.committed = ledger.appended
        await self._forget_deaths(ledgers)

    async def _forget_deaths(self, ledgers: Sequence[Ledger]) -> None:
        if not self._deaths:
            return
        marks = {ledger.where: ledger.committed for ledger in ledgers}
        done = [(p, offset) for p, offset in self._deaths if p in marks and offset < marks[p]]
        if done:
            await persistently("redis", lambda: self._replies.forget_deaths(self._server.name, done))
            for coordinates in done:
                del self._deaths[coordinates]

    async def _start_again(self, ledger: Ledger, error: AiaasError) -> None:
        """Nobody knows what was appended: go back to what is certain."""
        logs.get().warning("starting again at the committed offset", partition=ledger.partition, error=error.message)
        partition = TopicPartition(ledger.topic, ledger.partition)
        self._epochs[partition] += 1
        ledger.close()
        self._release(self._server.drop(ledger))
        if self._ledgers.get(partition) is ledger:
            del self._ledgers[partition]
            if partition in self._consumer.assignment():
                self._consumer.seek(partition, ledger.committed)
        await asyncio.sleep(1)
