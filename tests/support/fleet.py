"""A worker as the gateway sees it in heartbeats: it obeys the registry at once."""

from __future__ import annotations

import asyncio
import contextlib

from shared import kafka, registry_log


class Fleet:
    """One worker's heartbeats: it holds every ready version of what is loaded, when it is willing."""

    def __init__(self, log, writer_):
        self._log = log
        self._writer = writer_
        self.willing = asyncio.Event()
        self.willing.set()

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, settings, writer_):
        async with (
            kafka.started(lambda: kafka.producer(settings), "fleet") as producer,
            registry_log.follow(settings, producer) as log,
        ):
            fleet = cls(log, writer_)
            running = asyncio.create_task(fleet._run())
            yield fleet
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self):
        async for registry in self._log.changes():
            await self.willing.wait()
            loaded = [
                (model.name, version.number)
                for model in registry.models.values()
                for version in model.versions.values()
                if version.state == "ready" and not model.unloaded
            ]
            await self._writer.heartbeat(*loaded, registry_offset=registry.offset)
