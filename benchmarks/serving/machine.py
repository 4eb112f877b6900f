"""The machine and the moment that a measurement belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from shared.machine import isa

_REPOSITORY = Path(__file__).parents[2]
_PACKAGES = (
    "aiokafka", "confluent-kafka", "fastapi", "granian", "httptools", "msgspec", "numpy", "onnxruntime", "orjson",
    "redis", "starlette", "uvicorn", "uvloop",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """What would have to be known to repeat it. Load averages are those before the measurement begins."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "isa": isa(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "java": _first_line("java", "--version"),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "load_average_before": list(os.getloadavg()),
        "commit": _first_line("git", "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_first_line("git", "status", "--porcelain")),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, cwd=_REPOSITORY, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.splitlines()), "")
