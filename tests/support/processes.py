"""Services as processes of their own, for tests that kill and stop them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shared.settings import PlatformSettings


@contextmanager
def service(
    name: str, settings: PlatformSettings, log: Any, *, module: str | None = None, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m services.{name}`, or another module, with these settings, and variables that are none.

    Killed at the end, whatever state it is in.
    """
    fields = settings.model_dump(exclude={"incarnation"}, exclude_none=True, exclude_defaults=True)
    environment = {f"AIAAS_{field.upper()}": str(value) for field, value in fields.items()}
    command = [sys.executable, "-m", module or f"services.{name}"]
    process = subprocess.Popen(command, env=os.environ | environment | variables, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
