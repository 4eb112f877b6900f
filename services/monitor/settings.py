"""Configuration of a monitor."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - a property's type, beside fields that pydantic reads

from pydantic import Field, Json, field_validator

from services.monitor.history import Retention
from shared.api_keys import ApiKey, Tenant
from shared.settings import PlatformSettings
from shared.tls import CertFile, KeyFile


class MonitorSettings(PlatformSettings):
    """One monitor per platform; its state lies in `data_dir/monitor`."""

    api_keys: Json[dict[ApiKey, Tenant]] = Field(default="{}", validate_default=True, repr=False)
    """The gateway's: who has one may promote and roll back from the dashboard. Without keys everyone on loopback may,
    and nobody where the monitor listens beyond it."""
    monitor_host: str = "127.0.0.1"
    monitor_port: int = Field(default=8090, ge=1, le=65535)
    monitor_tls_certfile: CertFile | None = None
    """With it the monitor speaks HTTPS, and nothing else."""
    monitor_tls_keyfile: KeyFile = Field(default=None, validate_default=True)
    monitor_snapshot_interval_s: float = Field(default=5.0, gt=0)
    """At most this much is folded again after a crash."""

    monitor_keep_fine_h: float = Field(default=6, ge=1, le=24 * 30)
    """How long windows of 10 s are kept, before they become minutes."""
    monitor_keep_minutes_d: float = Field(default=7, ge=1, le=366)
    """How long minutes are kept, before they become hours."""
    monitor_keep_hours_d: float = Field(default=400, ge=1, le=3660)
    monitor_keep_requests_d: float = Field(default=7, ge=0.05, le=3660)
    """How long single requests can be asked for by their id."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _empty_is_none(cls, text: str) -> str:
        return text or "{}"  # a variable that is there and empty, as compose files pass it on

    @property
    def retention(self) -> Retention:
        """How long what is kept."""
        days = (self.monitor_keep_minutes_d, self.monitor_keep_hours_d, self.monitor_keep_requests_d)
        return Retention(int(self.monitor_keep_fine_h * 3600), *[int(each * 86_400) for each in days])

    @property
    def history_dir(self) -> Path:
        """Where the history is stored."""
        return self.data_dir / "monitor" / "history"

    @property
    def snapshot_path(self) -> Path:
        """Where the state is stored."""
        return self.data_dir / "monitor" / "state.json"
