"""Where the demo happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shared.topics import Topics


@dataclass(frozen=True, slots=True)
class Place:
    """Where the stack is, and where trained models are kept between demos."""

    gateway_url: str
    monitor_url: str
    bootstrap_servers: str
    topics: Topics
    cache_dir: Path
    report_path: Path
    environment: Mapping[str, str]
    """What other commands need to find it."""
