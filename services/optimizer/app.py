"""The optimizer's composition root: what it is made of, and in which order that starts and stops."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import psutil

from services.optimizer import elsewhere, sweeping
from services.optimizer.claims import Listening
from services.optimizer.confined import open_sandbox
from services.optimizer.curves import Curves
from services.optimizer.drawing import Drawer
from services.optimizer.exporter import Exporter
from services.optimizer.job import Jobs
from services.optimizer.plan import Means
from services.optimizer.reactor import Reactor
from services.optimizer.workspace import sweep
from shared import health, heartbeats, kafka, logs, registry_log
from shared.artifacts import ArtifactStore
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat
from shared.telemetry import Telemetry

if TYPE_CHECKING:
    from services.optimizer.settings import OptimizerSettings

_LISTEN_EVERY_S = 1.0
_ENGINES = ("onnxruntime", "torch", "tensorflow")
"""What heartbeats tell of the child's libraries: what models can be run and built with."""


async def serve(settings: OptimizerSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set; a running job's child is killed then, and its version is the next owner's.

    Raises:
        SandboxUnusable: no file can be examined on this machine.
        StoreUnavailable: the artifact store's URL can't be opened.
    """
    missing: str | None = "sandbox"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(health.served(settings.health_host, settings.health_port, lambda: missing))
        sweep(settings)
        sandbox, probed = await open_sandbox(settings)
        store = ArtifactStore(settings.artifact_store_url)
        missing = "kafka"
        await kafka.ensure_topics(settings)
        producer = await stack.enter_async_context(kafka.started(lambda: kafka.producer(settings), "producer"))
        log = await stack.enter_async_context(registry_log.follow(settings, producer))
        others = await stack.enter_async_context(heartbeats.follow(settings))
        telemetry = Telemetry(settings, "optimizer", producer)
        listening = Listening(settings.owner, others.is_alive, time.monotonic)
        engines = {name: probed.tools[name] for name in _ENGINES if name in probed.tools}
        machine = MachineClass(
            isa=probed.isa,
            providers=probed.providers,
            threads=settings.threads,
            engines=engines,
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            python=platform.python_version(),
        )

        def means() -> Means:
            gpu = any("CUDAExecutionProvider" in beat.machine.providers for beat in others.alive())
            about = f"{machine.isa}, {machine.threads} threads"
            classes, here = elsewhere.classes(others.alive(), machine)
            return Means(
                training="torch" in probed.tools, gpu=gpu, others=classes, here=here, machine=about, tools=probed.tools
            )

        workers = await stack.enter_async_context(elsewhere.open_workers(settings, producer, others))
        jobs = Jobs(settings, store, sandbox, means, Drawer(settings), workers)
        curves = Curves(settings.curves_dir)
        stack.callback(curves.close)
        reactor = Reactor(settings, log, listening, jobs, telemetry, curves)
        exporter = Exporter(settings, log, listening, store, sandbox, probed.tools)

        def beat() -> Heartbeat:
            return Heartbeat(
                instance=settings.instance,
                incarnation=settings.incarnation,
                service="optimizer",
                machine=machine,
                registry_offset=log.registry.offset,
                interval_s=heartbeats.INTERVAL_S,
                tools=tuple(sorted(probed.tools)),
            )

        missing = None
        logs.get().info("ready", isa=machine.isa, threads=machine.threads)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(heartbeats.publish(settings, producer, beat), name="heartbeats"),
                tasks.create_task(telemetry.run(), name="telemetry"),
                tasks.create_task(_listen(listening), name="listening"),
                tasks.create_task(sweeping.run(settings, store, lambda: log.registry), name="sweeping"),
                tasks.create_task(reactor.run(), name="reactor"),
                tasks.create_task(exporter.run(), name="exporter"),
            ]
            await stop.wait()
            for task in running:
                task.cancel()


async def _listen(listening: Listening) -> None:
    while True:
        listening.update()
        await asyncio.sleep(_LISTEN_EVERY_S)
