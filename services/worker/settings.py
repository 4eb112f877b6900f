"""Settings of the worker."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, Json, field_validator

from shared.settings import PlatformSettings


class WorkerSettings(PlatformSettings):
    """See `PlatformSettings` for how to reach Kafka, Redis and the store."""

    static_membership: bool = False
    """Join consumer groups under the instance's name, so that a restart takes its partitions back at once and without
    a rebalance. Only where something guarantees that no two workers have one name: they would fight for ever."""
    session_timeout_s: float = Field(default=6.0, ge=6.0)
    """A worker unheard of for this long loses its partitions."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Intra-op threads of one run."""
    pt2_tenants: Json[list[str]] = Field(default="[]", validate_default=True)
    """JSON list of the tenants whose `.pt2` files the torch engine loads; `["*"]`: everyone's. Loading one can run what
    is in it (docs/export.md). The optimizer reads the same variable when such a file is uploaded."""
    torchscript_tenants: Json[list[str]] = Field(default="[]", validate_default=True)
    """The same for TorchScript."""
    memory_budget_bytes: int = Field(default=4 * 1024**3, ge=1)
    """Model bytes held at once; the least recently used go first."""
    max_run_s: float = Field(default=30.0, gt=0)
    """How long one run may take before it is terminated."""

    preprocessing_threads: int = Field(default=2, ge=1)
    """Requests with texts or pictures that are made into tensors at once."""
    max_preprocessing_s: float = Field(default=10.0, gt=0)
    """How long that may take for one request; looked at between its texts or pictures."""

    max_queued: int = Field(default=512, ge=1)
    """Jobs of one model taken from Kafka and not yet started."""
    max_batch_bytes: int = Field(default=16 * 1024**2, ge=1)
    """Request bytes of one batch."""
    max_held_bytes: int = Field(default=256 * 1024**2, ge=1)
    """Request bytes held at once, over all models."""
    max_fetched_bytes: int = Field(default=512 * 1024**2, ge=1)
    """Tensor bytes fetched from the artifact store and held at once, over all models; so also those of one request."""
    max_result_bytes: int = Field(default=256 * 1024**2, ge=1)
    """Output bytes of one request. Redis is given `claim_bytes` of them, the artifact store the rest."""
    store_wait_s: float = Field(default=10.0, ge=0)
    """How long a request may wait for an artifact store that does not answer."""
    duplicate_wait_s: float = Field(default=30.0, gt=0)
    """How long a repeated id waits for the first request's answer."""
    drain_s: float = Field(default=20.0, gt=0)
    """How long running work may take to finish when partitions are revoked or the worker stops."""

    @field_validator("pt2_tenants", "torchscript_tenants", mode="before")
    @classmethod
    def _empty_is_none(cls, text: object) -> object:
        return text or "[]"  # a variable that is there and empty, as compose files pass it on

    @property
    def torch_tenants(self) -> dict[str, list[str]]:
        """Whose uploads the torch engine loads, by what they are."""
        return {"pt2": self.pt2_tenants, "torchscript": self.torchscript_tenants}

    reply_topic_prefixes: tuple[str, ...] = ()
    """Where copies of replies may be produced; none by default."""
