"""Sources by the name that commands give them, and times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from services.audit import archive_source, explain, joined_source, kafka_source
from shared.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from services.audit.source import Source
    from shared.registry import Registry
    from shared.settings import PlatformSettings


SOURCES: Final[Mapping[str, Callable[[PlatformSettings], AbstractAsyncContextManager[Source]]]] = {
    "auto": joined_source.open_source,
    "kafka": kafka_source.open_source,
    "archive": archive_source.open_source,
}


def opened(settings: PlatformSettings, which: str) -> AbstractAsyncContextManager[Source]:
    """`auto`, `kafka` or `archive`. Entering it raises `LogUnavailable` if Kafka is asked for and was not reached.

    Raises:
        InvalidInput: it is none of them.
    """
    if which not in SOURCES:
        raise InvalidInput(f"--source {which}: it is {', '.join(SOURCES)}")
    return SOURCES[which](settings)


def milliseconds(text: str) -> int:
    """A time in RFC 3339 as milliseconds since the epoch; one without zone is UTC.

    Raises:
        InvalidInput: it is none.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError as err:
        raise InvalidInput(f"{text!r} is not a time as 2025-11-28T20:00:00Z") from err
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


async def explained(settings: PlatformSettings, which: str, request_id: str, model: str | None) -> list[dict[str, Any]]:
    """See `explain.explain`."""
    async with opened(settings, which) as source:
        return await explain.explain(source, request_id, model)


async def models_as_of(settings: PlatformSettings, time: str) -> list[dict[str, Any]]:
    """All models as they were at a time, as `aiaas models list` shows them.

    Raises:
        InvalidInput: that is no time.
    """
    time_ms = milliseconds(time)
    async with opened(settings, "auto") as source:
        registry = await explain.registry_at(source, time_ms)
    return listed(registry)


def listed(registry: Registry) -> list[dict[str, Any]]:
    """The models of a registry, with their versions and which of them answer."""
    return [
        {
            "name": model.name,
            "active": model.active,
            "weights": {str(number): weight for number, weight in model.weights.items()},
            "retired": model.retired,
            "unloaded": model.unloaded,
            "versions": [
                {"version": version.number, "state": version.state, "variant": version.chosen}
                for _, version in sorted(model.versions.items())
            ],
        }
        for _, model in sorted(registry.models.items())
    ]
