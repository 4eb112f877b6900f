"""A timer for the earliest deadline of all that waits: jobs expire when it passes, not when the lane comes to them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from services.worker.model_server import ModelServer


class Expiry:
    """One timer over the servers of a worker. `look` after jobs have arrived; it costs nothing if none is earlier."""

    def __init__(self, servers: Collection[ModelServer]) -> None:
        self._servers = servers
        self._timer: asyncio.TimerHandle | None = None
        self._due_ms = 0

    def look(self) -> None:
        """Set the timer to the earliest deadline."""
        earliest_ms = min((s.earliest_ms for s in self._servers if s.earliest_ms is not None), default=None)
        if earliest_ms is None or (self._timer is not None and self._due_ms <= earliest_ms):
            return
        self.stop()
        delay_s = max(0.0, (earliest_ms + 1) / 1000 - time.time())
        self._due_ms = earliest_ms
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def stop(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now_ms = time.time_ns() // 1_000_000
        for server in self._servers:
            server.expire(now_ms)
        self.look()
