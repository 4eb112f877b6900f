"""Configuration of a monitor."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - a property's type, beside fields that pydantic reads

from pydantic import Field, Json, field_validator

from services.monitor.analysis import Slo
from services.monitor.drift import Sensitivity
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

    monitor_watch_interval_s: float = Field(default=5.0, gt=0)
    """How often alert rules are judged."""
    monitor_slo_latency_s: float = Field(default=0.5, gt=0)
    """What callers are promised: so many answers (`_latency_target`) within this time."""
    monitor_slo_latency_target: float = Field(default=0.99, gt=0, lt=1)
    monitor_slo_latency_s_by_model: dict[str, float] = Field(default_factory=dict)
    """The same for single models, as JSON."""
    monitor_slo_availability: float = Field(default=0.999, gt=0, lt=1)
    """And so many of them a result; the rest is the error budget."""
    monitor_cpu_core_hour_cost: float = Field(default=0.04, ge=0)
    monitor_gpu_hour_cost: float = Field(default=2.5, ge=0)
    monitor_currency: str = Field(default="USD", max_length=10)
    monitor_drift_reference_rows: int = Field(default=1000, ge=100, le=10**7)
    """A version's first so many observed rows are what later ones are held against."""
    monitor_drift_window_rows: int = Field(default=200, ge=50, le=10**7)
    monitor_drift_alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """The share of windows that are called drifted by chance, at most."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _empty_is_none(cls, text: str) -> str:
        return text or "{}"  # a variable that is there and empty, as compose files pass it on

    def slo(self, model: str) -> Slo:
        """What callers of a model are promised."""
        latency_s = self.monitor_slo_latency_s_by_model.get(model, self.monitor_slo_latency_s)
        return Slo(latency_s, self.monitor_slo_latency_target, self.monitor_slo_availability)

    @property
    def sensitivity(self) -> Sensitivity:
        """When drift is looked for, and what counts as one."""
        return Sensitivity(
            self.monitor_drift_reference_rows, self.monitor_drift_window_rows, alpha=self.monitor_drift_alpha
        )

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
