"""The real Kafka and Redis that a test session runs against, and settings that keep tests apart on them.

Tests share the servers and nothing else: every call of `Backbone.settings` has its own topics, artifact store and data
directory, every call of `Backbone.model` its own name in Redis. `clean` removes all of it, which matters on servers
that were given (`AIAAS_KAFKA_BOOTSTRAP_SERVERS`, `AIAAS_REDIS_URL`) and live longer than the session.
"""

from __future__ import annotations

import uuid
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from redis import Redis

from shared.kafka import client_options
from shared.settings import PlatformSettings

if TYPE_CHECKING:
    from pathlib import Path

S = TypeVar("S", bound=PlatformSettings)


class Backbone:
    """Where the servers are. `environment` is what a service needs to reach them, as `AIAAS_*` variables."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self.environment = environment
        self.bootstrap_servers = environment["AIAAS_KAFKA_BOOTSTRAP_SERVERS"]
        self.redis_url = environment["AIAAS_REDIS_URL"]
        self.embedded = environment.get("AIAAS_KAFKA_IDEMPOTENCE") == "false"
        """Whether it is the broker that stands in for Apache Kafka where that can't be had."""
        self._kafka = {
            name.removeprefix("AIAAS_").lower(): value
            for name, value in environment.items()
            if name.startswith("AIAAS_KAFKA_")  # where it is, and what this one must be spared
        }
        self._directory = directory
        self._run = f"t{uuid.uuid4().hex[:8]}"
        self._numbers = count(1)

    def settings(self, settings_type: type[S] = PlatformSettings, **overrides: Any) -> S:
        """Settings of a service that meets nobody else's topics or files. Pass `topic_prefix` on to let two meet."""
        name = self._fresh()
        fields: dict[str, Any] = {
            **self._kafka,
            "instance": name,
            "redis_url": self.redis_url,
            "topic_prefix": f"{name}.",
            "artifact_store_url": (self._directory / name / "artifacts").as_uri(),
            "data_dir": self._directory / name,
            **overrides,
        }
        return settings_type(**fields)

    def model(self) -> str:
        """A model name that no other test uses: models share their keys in Redis, whatever the topic prefix."""
        return self._fresh()

    async def clean(self) -> None:
        """Delete the topics and keys that this session made."""
        admin = AIOKafkaAdminClient(**client_options(self.settings()))
        await admin.start()
        try:
            ours = [name for name in await admin.list_topics() if name.startswith(self._run)]
            await admin.delete_topics(ours, timeout_ms=30_000)
        finally:
            await admin.close()
        with closing(Redis.from_url(self.redis_url)) as redis:
            for key in redis.scan_iter(match=f"aiaas:*:{self._run}-*", count=1000):
                redis.delete(key)

    def _fresh(self) -> str:
        return f"{self._run}-{next(self._numbers)}"
