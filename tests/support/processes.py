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
def service(name: str, settings: PlatformSettings, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m services.{name}` with these settings; killed at the end, whatever state it is in."""
    fields = settings.model_dump(exclude={"incarnation"}, exclude_none=True, exclude_defaults=True)
    environment = {f"AIAAS_{field.upper()}": str(value) for field, value in fields.items()}
    process = subprocess.Popen([sys.executable, "-m", f"services.{name}"], env=os.environ | environment, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
