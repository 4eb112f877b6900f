"""When a result is in Redis: asked for a sample of requests, every two milliseconds, until it is there."""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis

_EVERY_S = 0.002
_AT_ONCE = 64


class Probes(threading.Thread):
    """Asks Redis for some results until they are there."""

    def __init__(self, redis: Redis, key: str) -> None:
        super().__init__(name="probes", daemon=True)
        self._redis = redis
        self._key = key
        self._waiting: deque[tuple[str, float]] = deque()
        self._over = threading.Event()
        self.latencies_s = array("d")

    def expect(self, request_id: str, sent_s: float) -> None:
        """One more to ask for."""
        self._waiting.append((request_id, sent_s))

    def forget(self) -> None:
        """The warm-up is over: what was measured in it does not count."""
        self.latencies_s = array("d")

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look, and look again."""
        while not self._over.wait(_EVERY_S):
            asked = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
            if not asked:
                continue
            pipeline = self._redis.pipeline(transaction=False)
            for request_id, _ in asked:
                pipeline.exists(self._key.format(id=request_id))
            found, now_s = pipeline.execute(), time.perf_counter()
            self.latencies_s.extend(now_s - sent_s for (_, sent_s), there in zip(asked, found, strict=True) if there)
            self._waiting.extendleft(
                each for each, there in zip(reversed(asked), reversed(found), strict=True) if not there
            )
