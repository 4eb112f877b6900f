"""Configuration of the gateway; each variable is `AIAAS_` and the field's name in capitals."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, Json, StringConstraints, field_validator

from shared.settings import PlatformSettings

if TYPE_CHECKING:
    from pydantic import ValidationInfo

ApiKey = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{8,200}$")]
Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
_MIB = 1024 * 1024


class GatewaySettings(PlatformSettings):
    """Where it listens, who may ask, and the bounds on everything a caller can make it hold."""

    api_keys: Json[dict[ApiKey, Tenant]] = Field(default="{}", validate_default=True, repr=False)
    """JSON map of API key to tenant. Without keys everyone is let in, and only loopback is bound."""
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8080, ge=1, le=65535)

    request_timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of a request that brings none of its own (`timeout` parameter, in µs)."""
    max_request_timeout_s: float = Field(default=600.0, gt=0)
    """A longer `timeout` counts as this."""
    produce_timeout_s: float = Field(default=10.0, gt=0)
    """How long Kafka may take to acknowledge a request."""
    max_in_flight_per_model: int = Field(default=1024, ge=1)
    max_body_bytes: int = Field(default=8 * _MIB, ge=1)
    """One inference body. JSON is longer than the record made of it, which must stay below 1 MB."""
    max_bodies_bytes: int = Field(default=256 * _MIB, ge=1)
    """All inference bodies held at a time."""

    max_upload_bytes: int = Field(default=2048 * _MIB, ge=1)
    max_uploads: int = Field(default=4, ge=1)
    """Uploads that stream at a time."""
    upload_timeout_s: float = Field(default=3600.0, gt=0)

    stall_timeout_s: float = Field(default=30.0, gt=0)
    """How long a client may send or take nothing in the middle of a request or an answer."""
    max_connections: int = Field(default=4096, ge=1)
    drain_timeout_s: float = Field(default=20.0, ge=0)
    """How long callers that wait may still get their answer after the gateway was told to stop."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _empty_is_none(cls, text: str) -> str:
        return text or "{}"  # a variable that is there and empty, as compose files pass it on

    @field_validator("gateway_host")
    @classmethod
    def _loopback_without_keys(cls, host: str, info: ValidationInfo) -> str:
        if "api_keys" in info.data and not info.data["api_keys"] and not _is_loopback(host):
            raise ValueError("set AIAAS_API_KEYS to listen beyond loopback: without keys anyone could do anything")
        return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
