"""Configuration of the gateway; each variable is `AIAAS_` and the field's name in capitals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, Json, field_validator

from shared.api_keys import ApiKey, Tenant
from shared.settings import PlatformSettings, is_loopback
from shared.tls import CaFile, CertFile, KeyFile

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import ValidationInfo

_MIB = 1024 * 1024


class Quota(BaseModel):
    """What one tenant may ask for: inferences a second in the long run, and how many at once after a pause."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_s: float = Field(gt=0, le=1_000_000)
    burst: int = Field(ge=1, le=10_000_000)


class GatewaySettings(PlatformSettings):
    """Where it listens, who may ask, and the bounds on everything a caller can make it hold."""

    api_keys: Json[dict[ApiKey, Tenant]] = Field(default="{}", validate_default=True, repr=False)
    """JSON map of API key to tenant. Without keys everyone is let in, and only loopback is bound."""
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8080, ge=1, le=65535)
    gateway_shares_port: bool = False
    """Whether other gateways on this host listen on the same address: the kernel spreads connections over them."""
    gateway_tls_certfile: CertFile | None = None
    """With it the gateway speaks HTTPS, and nothing else."""
    gateway_tls_keyfile: KeyFile = Field(default=None, validate_default=True)
    gateway_tls_client_cafile: CaFile | None = None
    """With it only clients get in who have a certificate by it; API keys are asked for besides."""

    request_timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of a request that brings none of its own (`timeout` parameter, in µs)."""
    max_request_timeout_s: float = Field(default=600.0, gt=0)
    """A longer `timeout` counts as this."""
    produce_timeout_s: float = Field(default=10.0, gt=0)
    """How long Kafka may take to acknowledge a request."""
    max_in_flight_per_model: int = Field(default=1024, ge=1)
    """Never more than this, whatever is learned of a model's speed (`limits`)."""
    max_queue_s: float = Field(default=0.25, gt=0)
    """Of a model that is answered slowly, so long a queue is let in, or what its workers can hold in batches."""
    tenant_quotas: Json[dict[Tenant, Quota]] = Field(default="{}", validate_default=True)
    """JSON map of tenant to what it may ask for over all gateways: `{"requests_per_s": 50, "burst": 100}`."""
    max_body_bytes: int = Field(default=4 * _MIB, ge=1)
    """One inference body that is parsed as a whole: JSON, or the header of a binary one."""
    max_binary_body_bytes: int = Field(default=512 * _MIB, ge=1)
    """One binary inference body. What is large in it goes through to the artifact store, and is not held here."""
    max_json_output_bytes: int = Field(default=8 * _MIB, ge=0)
    """Outputs in the artifact store that an answer in JSON spells out; larger ones have to be asked for in binary."""
    max_bodies_bytes: int = Field(default=256 * _MIB, ge=1)
    """All inference bodies held at a time."""

    max_upload_bytes: int = Field(default=2048 * _MIB, ge=1)
    max_uploads: int = Field(default=4, ge=1)
    """Uploads that stream at a time."""
    upload_timeout_s: float = Field(default=3600.0, gt=0)

    load_timeout_s: float = Field(default=20.0, gt=0)
    """How long a load or unload waits for the workers to do it."""

    stall_timeout_s: float = Field(default=30.0, gt=0)
    """How long a client may send or take nothing in the middle of a request or an answer."""
    max_connections: int = Field(default=4096, ge=1)
    max_event_streams: int = Field(default=1024, ge=0)
    """Streams of a request's states that are open at a time."""
    event_stream_s: float = Field(default=900.0, gt=0)
    """How long one may last; a client that still waits then comes back by itself."""
    drain_timeout_s: float = Field(default=20.0, ge=0)
    """How long callers that wait may still get their answer after the gateway was told to stop."""

    @field_validator("api_keys", "tenant_quotas", mode="before")
    @classmethod
    def _empty_is_none(cls, text: str) -> str:
        return text or "{}"  # a variable that is there and empty, as compose files pass it on

    @field_validator("gateway_tls_client_cafile")
    @classmethod
    def _asks_only_over_tls(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file and "gateway_tls_certfile" in info.data and not info.data["gateway_tls_certfile"]:
            raise ValueError("set AIAAS_GATEWAY_TLS_CERTFILE too: certificates are asked for over TLS alone")
        return file

    @field_validator("gateway_host")
    @classmethod
    def _loopback_without_keys(cls, host: str, info: ValidationInfo) -> str:
        if "api_keys" in info.data and not info.data["api_keys"] and not is_loopback(host):
            raise ValueError("set AIAAS_API_KEYS to listen beyond loopback: without keys anyone could do anything")
        return host
