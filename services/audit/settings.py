"""Configuration of the archiver and of the audit commands."""

from __future__ import annotations

from shared.settings import PlatformSettings


class AuditSettings(PlatformSettings):
    """The archive lies in the artifact store (`AIAAS_ARTIFACT_STORE_URL`), below `audit/`."""
