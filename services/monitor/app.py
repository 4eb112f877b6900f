"""The monitor's one composition root: HTTP first, then Kafka, then what was stored, then everything else.

HTTP answers from the start, so that "not ready" can be told from "not there". What runs in a task group ends the
service when it fails: a supervisor starts it again, and the snapshot makes that harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import uvicorn
from aiokafka.admin import AIOKafkaAdminClient

from services.monitor import outcome_log, routes_dashboard, subscribers
from services.monitor.alerts import Alerts
from services.monitor.drift import Drift
from services.monitor.fold import OutcomeFold
from services.monitor.history import History, set_aside
from services.monitor.measurements import Measurements
from services.monitor.publisher import Publisher
from services.monitor.routes import application
from services.monitor.snapshot import Snapshots
from services.monitor.state import State
from services.monitor.storing import Storing
from services.monitor.watching import Watching
from shared import asyncapi, broker, heartbeats, kafka, logs, registry_log, tls
from shared.dead_letters import DeadLetters
from shared.http_server import Server
from shared.request_ends import RequestEnds
from shared.telemetry import Telemetry
from shared.topics import REQUESTS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator

    from aiokafka import AIOKafkaConsumer
    from faststream.kafka import KafkaBroker

    from services.monitor.settings import MonitorSettings

_COLLECT_BYTES: Final = 128 * 1024
_COLLECT_MS: Final = 200
"""So much, or so long, the broker collects before it answers the monitor, which is in no hurry."""

_MERGE_S: Final = 10.0
"""How often the history is looked at for files to be merged, rolled up or dropped."""


async def serve(settings: MonitorSettings, stop: asyncio.Event) -> None:
    """Monitor until told to stop."""
    state = State(settings.metrics_interval_s)
    events = broker.build(settings)
    subscribers.subscribe(events, settings, state)
    http = application(state, settings, asyncapi.document(settings.topics))
    http.include_router(routes_dashboard.router(settings, lambda: state.registry_log))
    server = Server(
        uvicorn.Config(
            http,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
        ),
        _tls(settings),
    )
    with _listening(settings.monitor_host, settings.monitor_port) as listener:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listener]), name="http")
            work = tasks.create_task(_work(settings, state, events), name="monitor")
            logs.get().info("serving", host=settings.monitor_host, port=settings.monitor_port)
            await stop.wait()
            work.cancel()
            server.should_exit = True


def _tls(settings: MonitorSettings) -> ssl.SSLContext | None:
    if settings.monitor_tls_certfile is None:
        return None
    return tls.server_context(settings.monitor_tls_certfile, settings.monitor_tls_keyfile)


def _reader(settings: MonitorSettings) -> AIOKafkaConsumer:
    """The consumer of outcomes. It lets the broker collect some for a moment: what a fetch costs, it costs both."""
    wait_ms = min(_COLLECT_MS, settings.kafka_fetch_max_wait_ms)
    return kafka.consumer(settings, fetch_min_bytes=_COLLECT_BYTES, fetch_max_wait_ms=wait_ms)


async def _work(settings: MonitorSettings, state: State, events: KafkaBroker) -> None:
    await kafka.ensure_topics(settings)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(kafka.started(lambda: kafka.producer(settings), "events"))
        consumer = await stack.enter_async_context(kafka.started(lambda: _reader(settings), "outcomes"))
        # Asking for ends on the first one's connection would wait behind its fetches.
        asker = await stack.enter_async_context(kafka.started(lambda: kafka.consumer(settings), "request ends"))
        admin = await stack.enter_async_context(
            kafka.started(lambda: AIOKafkaAdminClient(**kafka.client_options(settings)), "request ends")
        )
        beats = await stack.enter_async_context(heartbeats.follow(settings))
        following = registry_log.follow(settings, producer, state.deploys.heard)
        state.registry_log = registry = await stack.enter_async_context(following)
        state.registry = lambda: registry.registry
        dead_letters = DeadLetters(settings, producer)
        ends = RequestEnds(asker, admin, settings.topics.name(REQUESTS), exact=settings.kafka_exact_ends)
        log = await outcome_log.describe(settings, admin)
        outcomes = outcome_log.OutcomeLog(settings, log, consumer, ends, dead_letters)
        snapshots = Snapshots(settings.snapshot_path)
        history = await _restore(settings, state, snapshots, outcomes, log.name)
        state.alive, state.lag = beats.alive, lambda: outcomes.lag(state.outcomes)
        state.waiting_for = lambda: None if outcomes.caught_up else "outcomes that were there at the start"

        done = broker.Done()
        await stack.enter_async_context(broker.running(events, dead_letters, done))
        storing = Storing(state, history, snapshots, log.name, lambda offsets: broker.commit(events, offsets), done)
        save = storing.save
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(outcomes.run(state.outcomes, save, lambda: state.recorder.is_full), name="outcomes")
                tasks.create_task(_every(settings.monitor_snapshot_interval_s, save), name="snapshots")
                tasks.create_task(_every(_MERGE_S, storing.merge), name="merging")
                publisher = Publisher(settings, producer, state.outcomes)
                tasks.create_task(Watching(settings, state, producer).run(), name="watching")
                tasks.create_task(publisher.run(lambda: outcomes.caught_up), name="statistics")
                tasks.create_task(Telemetry(settings, "monitor", producer).run(), name="telemetry")
        finally:
            await save()


async def _restore(
    settings: MonitorSettings,
    state: State,
    snapshots: Snapshots,
    outcomes: outcome_log.OutcomeLog,
    log_name: str,
) -> History:
    """Continue from the snapshot, if there is one of this log; the history that belongs to it."""
    stored = snapshots.load(log_name)
    if stored is not None:
        state.outcomes, state.measurements = stored.outcomes, stored.measurements
        state.alerts, state.drift = stored.alerts, stored.drift
        if not await outcomes.open(state.outcomes):
            snapshots.set_aside("the outcome log ends before it")
            stored = None
    if stored is None:
        set_aside(settings.history_dir)
        state.outcomes, state.measurements = OutcomeFold(), Measurements()
        state.alerts, state.drift = Alerts(), Drift()
        await outcomes.open(state.outcomes)
    history = History(settings.history_dir, settings.retention)
    history.open(stored.history if stored else history.manifest)
    state.history, state.outcomes.sink = history, state.recorder
    return history


async def _every(interval_s: float, do: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await do()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """The port, taken here because uvicorn ends the process when it can't have it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        yield listener
