"""The monitor in its own process, to be asked and to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx

from support.waiting import eventually

if TYPE_CHECKING:
    from services.monitor.settings import MonitorSettings


class Monitor:
    """The service in its own process, to be killed."""

    def __init__(self, settings: MonitorSettings) -> None:
        told = ("topic_prefix", "data_dir")
        fields = [name for name in settings.model_fields_set if name in told or name.startswith(("kafka_", "monitor_"))]
        configured = {f"AIAAS_{name.upper()}": str(getattr(settings, name)) for name in fields}
        self._environment = {**os.environ, **configured, "AIAAS_LOG_LEVEL": "error"}
        self.url = f"http://127.0.0.1:{settings.monitor_port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", "services.monitor"], env=self._environment)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> int:
        self._process.terminate()
        code = self._process.wait(timeout=60)
        self._process = None
        return code

    async def get(self, path: str) -> httpx.Response | None:
        async with httpx.AsyncClient() as client:
            try:
                return await client.get(self.url + path)
            except httpx.TransportError:
                return None

    async def stats(self) -> dict | None:
        response = await self.get("/v1/stats")
        return response.json() if response else None

    async def ready(self) -> None:
        """Wait until it says that it is."""

        async def look() -> bool:
            response = await self.get("/ready")
            return response is not None and response.is_success

        await eventually(look, within_s=90, what="a monitor that is ready")

    async def folded(self, offsets: dict[str, int]) -> dict:
        """The stats at exactly these offsets of the outcome log."""

        async def there():
            stats = await self.stats()
            return stats if stats and stats["offsets"] == offsets else None

        return await eventually(there, within_s=90, what=f"folding up to {offsets}")
