"""Settings of the local stack: the platform's own variables, and a few that only a local stack has.

`AIAAS_KAFKA_BOOTSTRAP_SERVERS` and `AIAAS_REDIS_URL` mean what they mean to a service; where one is set, the stack uses
that server instead of starting its own. TLS, SASL and passwords come with them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from services.cli.local.supervisor import Backoff
from shared.settings import PlatformSettings


def _default_cache_dir() -> Path:
    """The user's cache directory, as the XDG base directory specification places it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "aiaas"


def _default_redis_memory_mib() -> int:
    return max(1024, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8 // 1024**2)


class LocalStackSettings(PlatformSettings):
    """Where the stack keeps its state, which servers it starts, and how patient it is."""

    local_kafka: Literal["auto", "apache", "embedded"] = "auto"
    """`apache` fails where Apache Kafka can't be had; `auto` falls back to the embedded in-memory broker."""
    local_kafka_heap_mib: int = Field(default=512, ge=192)
    local_kafka_jvm_options: str = ""
    """Appended to the broker's command line, so that they win; `-XX:TieredStopAtLevel=1` if it lives for seconds: it
    starts half a second sooner, but never gets as quick as one that has run for a minute."""
    local_redis_memory_mib: int = Field(default_factory=_default_redis_memory_mib, ge=16)
    """By default an eighth of the machine's memory, 1 GiB at least; it is taken only as answers come."""
    cache_dir: Path = Field(default_factory=_default_cache_dir)
    """What is downloaded or prepared once for all stacks of this user."""

    workers: int = Field(default=1, ge=0, le=64)
    gateways: int = Field(default=1, ge=1, le=16)
    """How many gateway processes share one port."""
    ready_timeout_s: float = Field(default=90.0, gt=0)
    """From the start of a child to its first passed health check."""
    stop_timeout_s: float = Field(default=15.0, gt=0)
    """From SIGTERM to SIGKILL."""
    restart_first_s: float = Field(default=0.2, gt=0)
    restart_limit_s: float = Field(default=10.0, gt=0)
    restart_reset_s: float = Field(default=30.0, gt=0)
    """A child that was ready for this long before it died is restarted as if it had never died before."""

    @property
    def root(self) -> Path:
        """The data directory as an absolute path: children and clients may run elsewhere."""
        return self.data_dir.absolute()

    def backoff(self) -> Backoff:
        """How restarts of a child are spaced."""
        return Backoff(self.restart_first_s, self.restart_limit_s, self.restart_reset_s)

    def starts_kafka(self) -> bool:
        """Whether the stack brings its own broker."""
        return "kafka_bootstrap_servers" not in self.model_fields_set

    def starts_redis(self) -> bool:
        """Whether the stack brings its own Redis."""
        return "redis_url" not in self.model_fields_set
