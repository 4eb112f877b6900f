"""The composition root of the worker: what there is, who knows whom, and in which order it starts and stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from services.worker.claims import FetchClaims, OutputStore
from services.worker.engine import environment
from services.worker.intake import HeldBytes, Intake
from services.worker.job_spans import JobSpans
from services.worker.lane import Lane
from services.worker.measuring.reaction import Measuring
from services.worker.model_server import ModelServer
from services.worker.partaking import Partaking, lacking
from services.worker.processing.step import Preprocessing
from services.worker.receipts import Receipts
from services.worker.replay.intake import ReplayIntake
from services.worker.replay.pinned import Pinned
from services.worker.reply_copies import ReplyCopies
from services.worker.settle import Settlement, persistently
from services.worker.shelf import Shelf
from shared import health, heartbeats, kafka, logs, registry_log, replies, tracing
from shared.artifacts import ArtifactStore
from shared.dead_letters import DeadLetters
from shared.heartbeat_events import Heartbeat, LoadedModel
from shared.metric_events import BatchesRan, RowsObserved
from shared.outcomes import OutcomeWriter
from shared.registry import Registry, only_unloaded
from shared.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from services.worker.job import Job
    from services.worker.settings import WorkerSettings
    from shared.metric_events import MetricEvent
    from shared.tracing import Tracing

_PATIENCE_S = 0.5
"""How long a measurement for the optimizer waits for a moment without requests before it takes its turn."""
_READOPT_S = 10.0
"""How often models that could not be loaded are tried again, although nothing changed."""


async def serve(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Run a worker until `stop` is set, then drain."""
    starting: list[str | None] = ["kafka"]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(health.served(settings.health_host, settings.health_port, lambda: starting[0]))
        await kafka.ensure_topics(settings)
        producer = await stack.enter_async_context(kafka.started(lambda: kafka.producer(settings), "events"))
        copies_producer = await stack.enter_async_context(
            # Topics of others may refuse a record, and that costs an idempotent producer its sequence, for good.
            kafka.started(lambda: kafka.producer(settings, enable_idempotence=False), "reply copies")
        )
        starting[0] = "redis"
        redis = await stack.enter_async_context(replies.connect(settings))
        await persistently("redis", redis.ping)
        starting[0] = "registry"
        log = await stack.enter_async_context(registry_log.follow(settings, producer))
        executor = stack.enter_context(ThreadPoolExecutor(1, "lane"))
        worker = Worker(
            settings,
            log,
            redis,
            DeadLetters(settings, producer),
            await stack.enter_async_context(OutcomeWriter(settings)),
            ReplyCopies(copies_producer, settings.instance),
            Receipts(settings.owner, await kafka.cluster_id(settings)),
            executor,
        )
        worker.trace(await stack.enter_async_context(tracing.started(settings, "worker")))
        telemetry = Telemetry(settings, "worker", producer)
        telemetry.sources += [lambda: worker.batches(telemetry), lambda: worker.observed(telemetry)]
        measuring = Measuring(settings, ArtifactStore(settings.artifact_store_url), worker.aside, producer)
        await stack.enter_async_context(measuring.listening())
        async with asyncio.TaskGroup() as background:
            tasks = [
                background.create_task(job)
                for job in (
                    worker.run(),
                    telemetry.run(),
                    measuring.run(),
                    heartbeats.publish(settings, producer, worker.heartbeat, worker.changed),
                )
            ]
            starting[0] = None
            logs.get().info("ready", models=len(log.registry.models), threads=settings.threads)
            await stop.wait()
            starting[0] = "shutdown"
            await worker.drain()
            for task in tasks:
                task.cancel()


class Worker:
    """All models of one worker: a server and an intake each, one lane, one shelf."""

    def __init__(
        self,
        settings: WorkerSettings,
        log: registry_log.RegistryLog,
        redis: replies.Replies,
        dead_letters: DeadLetters,
        writer: OutcomeWriter,
        copies: ReplyCopies,
        receipts: Receipts,
        executor: ThreadPoolExecutor,
    ) -> None:
        self._settings = settings
        self._machine = environment(settings)
        self._log = log
        self._replies = redis
        self._writer = writer
        self._copies = copies
        self._held = HeldBytes(settings.max_held_bytes, settings.max_fetched_bytes)
        self._settlement = Settlement(settings, redis, dead_letters, receipts, self._completed)
        store = ArtifactStore(settings.artifact_store_url)
        outputs = OutputStore(store, settings, self._settlement.answer)
        self._lane = Lane(settings, redis, self._settlement, receipts, executor, outputs)
        self._shelf = Shelf(settings, store, executor, self._adopt)
        self._fetching = FetchClaims(store, settings, self._held.fetched)
        self._preprocessing = Preprocessing(settings, self._shelf, self._held, redis)
        pinned = Pinned(settings, store, self._shelf)
        self._replays = ReplayIntake(settings, log, self._lane, pinned, store, dead_letters, executor)
        self.changed = asyncio.Event()
        """What the heartbeat says is news."""
        self._servers: dict[str, ModelServer] = {}
        self._intakes: dict[str, Intake] = {}
        self._partaking: dict[str, Partaking] = {}
        self._intake_tasks: list[asyncio.Task[None]] = []
        self._answered: Counter[str] = Counter()
        self._tasks: asyncio.TaskGroup
        self._draining = False
        self._adopted = Registry()
        """What the shelf was last brought in line with: what the heartbeat says is loaded holds at its offset."""

    def trace(self, tracing: Tracing | None) -> None:
        """Tell the spans of requests from now on, if there is whom to tell."""
        self._settlement.spans = None if tracing is None else JobSpans(tracing)

    async def run(self) -> None:
        """Serve every model of the registry, as it changes, until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._shelf.run())
            self._tasks.create_task(self._lane.run())
            self._tasks.create_task(self._readopt())
            self._intake_tasks.append(self._tasks.create_task(self._replays.run()))
            async for registry in self._log.changes():
                for name in registry.models:
                    if name not in self._servers and not self._draining:
                        self._serve(name, registry)
                self._adopt()

    def aside(self) -> AbstractAsyncContextManager[bool]:
        """The device between two batches; see `Lane.aside`."""
        return self._lane.aside(_PATIENCE_S)

    async def drain(self) -> None:
        """Finish what runs, append and commit it, and leave the groups."""
        self._draining = True
        for task in self._intake_tasks:
            task.cancel()
        await asyncio.gather(*self._intake_tasks, return_exceptions=True)
        self._preprocessing.close()

    def _serve(self, name: str, registry: Registry) -> None:
        server = ModelServer(
            name,
            registry,
            self._shelf,
            self._settle,
            self._settings.max_batch_bytes,
            steps=(self._fetching, self._preprocessing),
            wake=self._lane.wake,
        )
        for variant in server.routed():
            if not lacking(registry.models[name], self._machine.engines, self._settings.torch_tenants):
                self._shelf.want(variant)
        self._servers[name] = server
        self._lane.add(server)
        self._intakes[name] = Intake(
            settings=self._settings,
            server=server,
            registry_log=self._log,
            replies=self._replies,
            writer=self._writer,
            copies=self._copies,
            held=self._held,
            queued=self._lane.wake,
        )
        self._partaking[name] = Partaking(name, self._intakes[name])
        self._intake_tasks.append(self._tasks.create_task(self._partaking[name].run()))

    def _adopt(self) -> None:
        self._adopted = self._log.registry
        self._shelf.release(only_unloaded(self._adopted))
        for name, server in self._servers.items():
            missing = lacking(self._adopted.models[name], self._machine.engines, self._settings.torch_tenants)
            self._partaking[name].say(missing)
            if not missing:
                server.adopt(self._adopted)
        self._shelf.keep_only({variant.key for server in self._servers.values() for variant in server.known()})
        self._lane.wake()
        self.changed.set()

    async def _readopt(self) -> None:
        while True:
            await asyncio.sleep(_READOPT_S)
            self._adopt()

    def _settle(self, jobs: list[Job]) -> None:
        self._tasks.create_task(self._settlement.fail(jobs))

    def _completed(self, jobs: Sequence[Job]) -> None:
        """These jobs, all of one model, have their outcomes."""
        if jobs:
            self._answered[jobs[0].model] += len(jobs)
            self._intakes[jobs[0].model].completed(jobs)

    # ------------------------------------------------------------------ what it tells of itself

    def heartbeat(self) -> Heartbeat:
        """What this worker is and holds."""
        settings = self._settings
        return Heartbeat(
            instance=settings.instance,
            incarnation=settings.incarnation,
            service="worker",
            machine=self._machine,
            loaded=tuple(self._loaded()),
            registry_offset=self._adopted.offset,
            lag={name: intake.lag for name, intake in self._intakes.items()},
            queued={name: len(server.waiting) for name, server in self._servers.items()},
            positions={
                where: position for intake in self._intakes.values() for where, position in intake.positions().items()
            },
            answered=dict(self._answered),
            interval_s=heartbeats.INTERVAL_S,
        )

    def _loaded(self) -> Iterable[LoadedModel]:
        held = self._shelf.runtimes()
        by_file = {key[:2]: key for key in held}
        """Whatever options it was loaded with: a session that is to be replaced answers until it is."""
        loaded = [model for model in self._adopted.models.values() if not model.unloaded]
        for model in loaded:
            for version in model.versions.values():
                for variant in version.variants.values():
                    key = variant.key if variant.key in held else by_file.get(variant.key[:2])
                    if key is None:
                        continue
                    size, runtime = held[key]
                    yield LoadedModel(
                        model=model.name,
                        version=version.number,
                        variant=variant.name,
                        artifact_sha256=variant.artifact.sha256,
                        byte_size=size,
                        engine=runtime.engine,
                        provider=runtime.provider,
                        threads=runtime.threads,
                        session_sha256=key[2],
                    )

    def batches(self, telemetry: Telemetry) -> Iterable[MetricEvent]:
        """What ran since the last call, by variant."""
        ran = dict(self._lane.ran)
        self._lane.ran.clear()
        for (model, version, variant), counts in ran.items():
            yield telemetry.event(
                BatchesRan,
                model=model,
                version=version,
                variant=variant,
                executions=counts.sizes.total(),
                sizes=dict(counts.sizes),
                compute_infer_ns=counts.compute_infer_ns,
            )

    def observed(self, telemetry: Telemetry) -> Iterable[MetricEvent]:
        """What was seen of the rows since the last call, by variant."""
        for (model, version, variant), rows, features in self._lane.observer.take():
            about = {"model": model, "version": version, "variant": variant}
            yield telemetry.event(RowsObserved, **about, rows=rows, features=features)
