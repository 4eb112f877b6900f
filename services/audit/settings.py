"""Configuration of the archiver and of the audit commands."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, Json

from shared.settings import PlatformSettings

_MIB = 1024 * 1024


class AuditSettings(PlatformSettings):
    """The archive lies in the artifact store (`AIAAS_ARTIFACT_STORE_URL`), below `audit/`."""

    audit_interval_s: float = Field(default=30.0, gt=0, le=3600)
    """What was read is written at least so often, and a checkpoint signed."""
    audit_segment_bytes: int = Field(default=32 * _MIB, ge=_MIB, le=1024 * _MIB)
    """What is held of a partition of the outcome log before it is written: requests, results and receipts."""
    audit_segment_rows: int = Field(default=20_000, ge=1, le=1_000_000)
    audit_key_file: Path | None = None
    """The Ed25519 private key that signs checkpoints, PEM (PKCS 8). Without it one is made in `data_dir/audit`."""
    audit_retention_days: Json[dict[str, int]] = Field(default="{}", validate_default=True)
    """JSON map of model to the days for which its requests and results are archived, `*` for all others; none: for
    ever. Receipts stay."""
    audit_sweep_interval_s: float = Field(default=3600.0, gt=0)
    """How often retention is kept and files that no manifest names are removed."""

    @property
    def audit_key_path(self) -> Path:
        """Where the private key is, or will be."""
        return self.audit_key_file or self.data_dir / "audit" / "signing-key.pem"
