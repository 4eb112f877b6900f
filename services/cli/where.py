"""Which platform a command talks to: what it was told, else the local stack that runs here, else the usual ports."""

from __future__ import annotations

import os

from services.cli.local import LocalStackSettings, RunningStack
from shared.settings import PlatformSettings, read

_USUAL_GATEWAY = "http://127.0.0.1:8080"
_USUAL_MONITOR = "http://127.0.0.1:8090"
_PREFIX = "AIAAS_"


def running_stack() -> RunningStack | None:
    """The local stack of the configured data directory, if one runs."""
    return RunningStack.find(read(LocalStackSettings).root)


def gateway_url(given: str | None) -> str:
    """The gateway's base URL, without a slash at its end."""
    stack = None if given else running_stack()
    return (given or (stack and stack.urls.get("gateway")) or _USUAL_GATEWAY).rstrip("/")


def monitor_url(given: str | None) -> str:
    """The monitor's base URL, without a slash at its end."""
    stack = None if given else running_stack()
    return (given or (stack and stack.urls.get("monitor")) or _USUAL_MONITOR).rstrip("/")


def platform_settings() -> PlatformSettings:
    """Settings for a client of Kafka and Redis: variables first, then what the running stack says of itself."""
    settings = read(PlatformSettings)
    stack = running_stack()
    if stack is None:
        return settings
    of_the_stack = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in stack.environment.items()
        if name not in os.environ and name.removeprefix(_PREFIX).lower() in PlatformSettings.model_fields
    }
    return PlatformSettings.model_validate({**settings.model_dump(exclude_unset=True), **of_the_stack})
