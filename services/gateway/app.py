"""The one place where a gateway is put together, and its life from start to drained."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from services.gateway import http_server, job_progress
from services.gateway.api import application
from services.gateway.express import Express
from services.gateway.gateway import Backbone, Gateway
from services.gateway.request_log import RequestLog
from services.gateway.request_spans import RequestSpans
from services.gateway.request_topics import RequestTopics
from services.gateway.request_watch import RequestWatch
from shared import heartbeats, kafka, logs, registry_log, replies, statistics, tracing
from shared.artifacts import ArtifactStore
from shared.metric_events import HttpAnswered
from shared.reply_waiter import ReplyWaiter
from shared.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from services.gateway.settings import GatewaySettings
    from shared.metric_events import MetricEvent


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve HTTP from the start, everything else once Kafka is there; after `stop`, drain within bounds.

    Raises:
        OSError: the address can't be had.
        StoreUnavailable: the artifact store's URL can't be opened.
        ExceptionGroup: a background task failed; the process is to be started again.
    """
    async with tracing.started(settings, "gateway") as traced:
        gateway = Gateway(settings)
        gateway.spans = None if traced is None else RequestSpans(traced)
        await _serve(gateway, stop)


async def _serve(gateway: Gateway, stop: asyncio.Event) -> None:
    settings = gateway.settings
    store = ArtifactStore(settings.artifact_store_url)
    express = Express(gateway)
    server = http_server.server(application(gateway), settings, gateway.door, express)
    with http_server.listen(settings) as listener:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=[listener]), name="http")
            working = tasks.create_task(_work(gateway, store), name="backbone")
            tls = settings.gateway_tls_certfile is not None
            logs.get().info("listening", host=settings.gateway_host, port=settings.gateway_port, tls=tls)
            await stop.wait()
            gateway.stopping()
            server.should_exit = True
            await asyncio.wait([serving], timeout=settings.drain_timeout_s)
            gateway.give_up()
            await serving
            await express.finish()
            working.cancel()


async def _work(gateway: Gateway, store: ArtifactStore) -> None:
    """Connect, and run what runs beside the requests until cancelled."""
    async with _connected(gateway.settings, store) as backbone, asyncio.TaskGroup() as tasks:
        telemetry = Telemetry(gateway.settings, "gateway", backbone.producer)
        telemetry.sources.append(lambda: _answered(gateway, telemetry))
        gateway.connected(backbone)
        tasks.create_task(telemetry.run(), name="telemetry")
        tasks.create_task(backbone.topics.follow(backbone.log), name="request topics")
        tasks.create_task(gateway.probe_log(), name="probe")
        tasks.create_task(gateway.watch_workers(), name="workers")
        tasks.create_task(backbone.watch.run(), name="request watch")


@asynccontextmanager
async def _connected(settings: GatewaySettings, store: ArtifactStore) -> AsyncIterator[Backbone]:
    """The clients, for as long as the gateway lives. Kafka is waited for; Redis may come and go."""
    await kafka.ensure_topics(settings)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(kafka.started(lambda: kafka.producer(settings), "producer"))
        requests = await stack.enter_async_context(RequestLog(settings))
        log = await stack.enter_async_context(registry_log.follow(settings, producer))
        beats = await stack.enter_async_context(heartbeats.follow(settings))
        counted = await stack.enter_async_context(statistics.follow(settings))
        redis = await stack.enter_async_context(replies.connect(settings))
        waiter = await stack.enter_async_context(ReplyWaiter(redis, settings.instance))
        progress = await stack.enter_async_context(job_progress.follow(settings))
        watch = RequestWatch(redis, waiter, beats, settings.max_event_streams)
        yield Backbone(
            producer, requests, log, RequestTopics(settings), beats, counted, redis, waiter, watch, store, progress
        )


def _answered(gateway: Gateway, telemetry: Telemetry) -> Iterable[MetricEvent]:
    """What was answered since the last time this was asked."""
    statuses = dict(gateway.answered)
    gateway.answered.clear()
    unready, gateway.unready = gateway.unready, 0
    yield telemetry.event(HttpAnswered, statuses=statuses, in_flight=gateway.in_flight, unready=unready)
