"""The order of things: own the directory, claim ports, start Kafka and Redis, then the services; drain in reverse."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from services.cli.local import child_logs, kafka, record, redis
from services.cli.local.errors import LocalStackError
from services.cli.local.events import OnEvent, StackEvent
from services.cli.local.ports import LOOPBACK, Ports
from services.cli.local.processes import Processes
from services.cli.local.supervisor import Child

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from typing import Any, Self

    from services.cli.local.servers import Server
    from services.cli.local.services import Service
    from services.cli.local.settings import LocalStackSettings
    from services.cli.local.supervisor import ChildSpec

_TRIM_LOGS_EVERY_S = 30.0


def _ignore(_event: StackEvent) -> None:
    return None


class LocalStack:
    """A stack for the time of an `async with`. Entering returns when every health check has passed.

    Raises (on entering):
        LocalStackError: with a sentence that says what to do; everything started so far is stopped.
    """

    def __init__(
        self, settings: LocalStackSettings, services: Sequence[Service] = (), on_event: OnEvent = _ignore
    ) -> None:
        self.settings = settings
        self.urls: dict[str, str] = {}
        self._claimed: dict[str, int] = {}
        self._services = services
        self._tell = on_event
        self._ports = Ports()
        self._processes = Processes()
        self._children: dict[str, Child] = {}
        self._kafka: Server | None = None
        self._redis: Server | None = None
        self._ready = False
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            undo.enter_context(record.owned(self.settings.root))
            undo.enter_context(self._ports)
            undo.enter_context(self._processes)
            undo.push_async_callback(self._drain)
            janitor = asyncio.create_task(self._trim_logs())
            undo.callback(janitor.cancel)
            await self._start()
            self._undo = undo.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._undo.aclose()

    def child(self, name: str) -> Child:
        """A running child by name: `kafka`, `redis`, `gateway`, `worker-1` and so on."""
        return self._children[name]

    @property
    def children(self) -> tuple[Child, ...]:
        """All children, in the order of their start."""
        return tuple(self._children.values())

    def environment(self) -> dict[str, str]:
        """The variables by which clients and services find this stack; only what is known so far while it starts."""
        root = self.settings.root
        given = "artifact_store_url" in self.settings.model_fields_set
        found = {
            "AIAAS_KAFKA_BOOTSTRAP_SERVERS": self._kafka.address if self._kafka else "",
            **(self._kafka.variables if self._kafka else {}),
            "AIAAS_REDIS_URL": self._redis.address if self._redis else "",
            "AIAAS_ARTIFACT_STORE_URL": self.settings.artifact_store_url if given else (root / "artifacts").as_uri(),
            "AIAAS_DATA_DIR": str(root),
            "AIAAS_GATEWAY_URL": self.urls.get("gateway", ""),
            "AIAAS_MONITOR_URL": self.urls.get("monitor", ""),
        }
        return {name: value for name, value in found.items() if value}

    async def _start(self) -> None:
        (self.settings.root / "artifacts").mkdir(parents=True, exist_ok=True)
        await _together(self._start_kafka(), self._start_redis())
        specs = [service.spec(self.settings, self._claim(service), self.environment()) for service in self._services]
        await self._bring_up(specs)
        self._ready = True
        self._on_event(StackEvent("stack", "ready", "everything is ready"))

    async def _start_kafka(self) -> None:
        self._kafka = await kafka.choose(self.settings, self._ports, self._processes, self._on_event)
        await self._bring_up_server("kafka", self._kafka)

    async def _start_redis(self) -> None:
        self._redis = await redis.choose(self.settings, self._ports)
        await self._bring_up_server("redis", self._redis)

    async def _bring_up_server(self, name: str, server: Server) -> None:
        self.urls[name] = server.address
        if server.child is None:
            self._on_event(StackEvent(name, "ready", f"using the {server.what}"))
        else:
            await self._bring_up([server.child])

    def _claim(self, service: Service) -> int:
        if service.shares_port_of is not None:
            return self._claimed[service.shares_port_of]
        port = self._claimed[service.name] = self._ports.claim(service.usual_port)
        self.urls[service.name] = f"{service.scheme}://{LOOPBACK}:{port}"
        return port

    async def _bring_up(self, specs: Iterable[ChildSpec]) -> None:
        children = [Child(spec, self._processes, self._on_event) for spec in specs]
        for child in children:
            self._children[child.spec.name] = child
            child.start()
        await _together(*(child.wait_ready() for child in children))

    async def _drain(self) -> None:
        """Services first, so that their last records and replies find a broker and a Redis; then those."""
        self._ready = False
        servers = [self._children[name] for name in ("redis", "kafka") if name in self._children]
        services = [child for child in self.children if child not in servers]
        await asyncio.gather(*(child.stop() for child in services))
        for server in servers:
            await server.stop()

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_LOGS_EVERY_S)
            for child in self.children:
                await asyncio.to_thread(child_logs.trim, child.spec.log_path)

    def _on_event(self, event: StackEvent) -> None:
        record.write(
            self.settings.root,
            {
                "ready": self._ready,
                "kafka": self._kafka.what if self._kafka else "",
                "environment": self.environment(),
                "urls": self.urls,
                "children": {
                    child.spec.name: {
                        "state": child.state,
                        "pid": child.pid,
                        "restarts": child.restarts,
                        "log": str(child.spec.log_path),
                    }
                    for child in self.children
                },
            },
        )
        self._tell(event)


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Run all at once; the first failure cancels the others and is the one that is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        first = next((err for err in failures.exceptions if isinstance(err, LocalStackError)), failures.exceptions[0])
        raise first from None
