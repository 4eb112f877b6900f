"""Configuration: environment variables, read once in a service's `main()` and passed on as a typed object.

Each service extends `PlatformSettings`. Configuration is trusted; a wrong value stops the start-up with the name of
the variable and its value. Every variable begins with `AIAAS_`.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.tls import CaFile, CertFile, KeyFile
from shared.topics import Topics

S = TypeVar("S", bound="PlatformSettings")


class PlatformSettings(BaseSettings):
    """What every service needs to reach Kafka, Redis and the artifact store."""

    model_config = SettingsConfigDict(env_prefix="AIAAS_", frozen=True, extra="ignore")

    instance: str = Field(default_factory=socket.gethostname, pattern=r"^[A-Za-z0-9._-]{1,100}$")
    """Names this process in logs, heartbeats and the consumer groups; the same across restarts, unique at any time."""
    incarnation: str = Field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Fresh at every start."""

    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_ssl_cafile: CaFile | None = None
    """Whom to trust; without it the system's authorities."""
    kafka_ssl_certfile: CertFile | None = None
    """Who we are, where the brokers want to know by certificate."""
    kafka_ssl_keyfile: KeyFile = Field(default=None, validate_default=True)
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_username: str | None = Field(default=None, validate_default=True)
    kafka_sasl_password: str | None = Field(default=None, repr=False, validate_default=True)
    kafka_replication_factor: int = Field(default=1, ge=1)
    kafka_idempotence: bool = True
    """Off only for brokers that don't have it (the embedded one): a retried record may then be in the log twice."""
    kafka_exact_ends: bool = True
    """Off only for brokers that name the last batch's beginning as a partition's end (the embedded one): whether an
    outcome lies beyond the end of its requests, and so is forged, can't be told there."""
    kafka_fetch_max_wait_ms: int = Field(default=2000, ge=1)
    """How long a broker may hold a fetch that finds nothing. Data returns at once on Kafka."""

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", pattern=r"^(rediss?|unix)://", repr=False)
    """`rediss://` is TLS; user and password stand before the host, `rediss://user:password@host:6379/0`."""
    redis_ssl_cafile: CaFile | None = None
    """Whom to trust; without it the system's authorities."""
    redis_ssl_certfile: CertFile | None = None
    redis_ssl_keyfile: KeyFile = Field(default=None, validate_default=True)
    redis_timeout_s: float = Field(default=2.0, gt=0)
    """How long one Redis command may take before Redis counts as down."""
    result_ttl_s: int = Field(default=3600, ge=60)
    """How long results, and the ids they belong to, are kept in Redis while it has room."""
    result_ttl_least_s: int = Field(default=60, ge=1)
    """For how long they are kept at least, when Redis fills up (`shared.keeping`)."""

    artifact_store_url: str = "file:///tmp/aiaas/artifacts"
    claim_bytes: int = Field(default=768 * 1024, ge=0, le=900_000)
    """Tensor bytes that a request or an answer carries itself: above, the largest lie in the artifact store. Names,
    parameters and headers come on top, and a record has to stay below 1 MB."""
    topic_prefix: str = Field(default="aiaas.", pattern=r"^[A-Za-z0-9._-]{1,50}$")
    request_partitions: int = Field(default=4, ge=1, le=1024)
    data_dir: Path = Path(".aiaas")

    health_host: str = "127.0.0.1"
    health_port: int | None = Field(default=None, ge=1, le=65535)
    """Where services without an HTTP surface of their own answer `/live` and `/ready`."""

    otlp_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None, pattern=r"^https?://"
    )
    """Where traces go, as the base of OTLP over HTTP (`http://collector:4318`); needs the extra `otel`. Without it
    nothing is traced. OpenTelemetry's own variables count too: the endpoint, `OTEL_EXPORTER_OTLP_HEADERS` and such."""
    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    """The share of traces that are kept, of those that begin here; of others whoever began them has decided."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "pretty"] = "auto"
    background_niceness: int = Field(default=10, ge=0, le=19)
    """Of the monitor and the archiver, which give way to those who answer."""
    metrics_interval_s: float = Field(default=5.0, gt=0)

    @field_validator("artifact_store_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if "://" not in url:
            raise ValueError("expected a URL such as file:///var/lib/aiaas/artifacts or s3://bucket/prefix")
        return url

    @field_validator("kafka_ssl_cafile", "kafka_ssl_certfile")
    @classmethod
    def _kafka_is_encrypted(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file and "SSL" not in info.data.get("kafka_security_protocol", "SSL"):
            raise ValueError(
                "nothing is encrypted: set AIAAS_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL, or unset this"
            )
        return file

    @field_validator("redis_ssl_cafile", "redis_ssl_certfile")
    @classmethod
    def _redis_is_encrypted(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file and not info.data.get("redis_url", "rediss:").startswith("rediss:"):
            raise ValueError("nothing is encrypted: begin AIAAS_REDIS_URL with rediss://, or unset this")
        return file

    @field_validator("kafka_sasl_username", "kafka_sasl_password")
    @classmethod
    def _sasl_has_both(cls, value: str | None, info: ValidationInfo) -> str | None:
        protocol = info.data.get("kafka_security_protocol", "")
        if not value and "SASL" in protocol:
            raise ValueError(f"AIAAS_KAFKA_SECURITY_PROTOCOL={protocol} needs a user name and a password")
        return value

    @property
    def topics(self) -> Topics:
        """The map of topic names under the configured prefix."""
        return Topics(self.topic_prefix)

    @property
    def owner(self) -> str:
        """This run of this instance: what claims and heartbeats are compared by."""
        return f"{self.instance}/{self.incarnation}"


def is_loopback(host: str) -> bool:
    """Whether a host, as it stands in URLs, is this machine and no other can reach it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read(settings_type: type[S]) -> S:
    """The settings from the environment, or an exit with one line per wrong variable."""
    try:
        return settings_type()
    except ValidationError as err:
        for error in err.errors(include_url=False):
            field = settings_type.model_fields[str(error["loc"][0])]
            where = error["loc"] if field.repr else error["loc"][:1]  # a secret may even be the key of a map
            variable = "AIAAS_" + "_".join(str(part) for part in where).upper()
            value = f"={error['input']!r}" if field.repr and error["input"] is not None else ""
            sys.stderr.write(f"{variable}{value}: {error['msg'].removeprefix('Value error, ')}\n")
        raise SystemExit(2) from err
