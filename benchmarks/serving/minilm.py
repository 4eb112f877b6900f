"""placeholder until the export is written."""

from __future__ import annotations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def make(_directory: Path) -> tuple[Path, list[Mapping[str, Any]]]:
    raise NotImplementedError
