"""One gateway and its workers as processes of their own, and a registry that the test writes.

For what the whole stack makes hard to see: one worker that has all partitions, models that no optimizer has to let
pass first, processes that are killed at a chosen moment. `FrontDoor` is how tests ask, `Rig` how they upload.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from services.gateway.settings import GatewaySettings
from services.worker.settings import WorkerSettings
from support.front_door import OK, FrontDoor, front_door
from support.ports import free_port
from support.processes import service
from support.waiting import eventually
from support.worker_rig import Rig, rig

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.backbone import Backbone
    from support.onnx_models import OnnxModel

_READY_S = 60.0


@dataclass
class SmallStack:
    """What runs, and how to ask it."""

    rig: Rig
    door: FrontDoor
    gateway_url: str
    worker_settings: list[WorkerSettings]
    logs: Path
    gateway: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _processes: ExitStack = field(default_factory=ExitStack)

    async def listening(self) -> None:
        """Wait until the gateway answers anything."""

        async def look() -> bool:
            if self.gateway is not None and self.gateway.poll() is not None:
                raise RuntimeError((self.logs / "gateway.log").read_text(errors="replace")[-2000:])
            try:
                return (await self.door.http.get("/v2/health/live")).status_code == OK
            except httpx.TransportError:
                return False

        await eventually(look, within_s=_READY_S, what="the gateway")

    async def serve(self, model: str, content: OnnxModel) -> None:
        """Upload a model and wait until a worker holds it."""
        await self.rig.upload(model, content)

        async def look() -> bool:
            return (await self.door.http.get(f"/v2/models/{model}/ready")).status_code == OK

        await eventually(look, within_s=_READY_S, what=f"a worker that holds {model}")

    async def kill_worker(self, number: int = 0) -> None:
        """SIGKILL."""
        self.workers[number].kill()
        await asyncio.to_thread(self.workers[number].wait)

    def start_worker(self, number: int = 0) -> None:
        """A worker's first process, or its next."""
        log = self._processes.enter_context((self.logs / f"worker-{number}.log").open("ab"))
        started = self._processes.enter_context(service("worker", self.worker_settings[number], log))
        self.workers[number:] = [started, *self.workers[number + 1 :]]

    def close(self) -> None:
        """Kill what runs."""
        self._processes.close()

    def start_gateway(self, settings: GatewaySettings) -> None:
        """The gateway's process."""
        log = self._processes.enter_context((self.logs / "gateway.log").open("ab"))
        self.gateway = self._processes.enter_context(service("gateway", settings, log))


@asynccontextmanager
async def small_stack(
    backbone: Backbone, directory: Path, *, workers: int = 1, **overrides: object
) -> AsyncIterator[SmallStack]:
    """A gateway and `workers` workers of one thread each; `overrides` are settings of all of them."""
    first = backbone.settings(WorkerSettings, threads=1, **overrides)
    shared = {"topic_prefix": first.topic_prefix, "artifact_store_url": first.artifact_store_url, **overrides}
    others = [backbone.settings(WorkerSettings, threads=1, **shared) for _ in range(workers - 1)]
    gateway = backbone.settings(GatewaySettings, gateway_port=free_port(), **shared)
    url = f"http://{gateway.gateway_host}:{gateway.gateway_port}"
    environment = {
        "AIAAS_KAFKA_BOOTSTRAP_SERVERS": first.kafka_bootstrap_servers,
        "AIAAS_TOPIC_PREFIX": first.topic_prefix,
        "AIAAS_GATEWAY_URL": url,
        "AIAAS_MONITOR_URL": "",
    }
    async with AsyncExitStack() as stack:
        there = SmallStack(
            await stack.enter_async_context(rig(first)),
            await stack.enter_async_context(front_door(environment)),
            url,
            [first, *others],
            directory,
        )
        stack.callback(there.close)
        there.start_gateway(gateway)
        for number in range(workers):
            there.start_worker(number)
        await there.listening()
        yield there
