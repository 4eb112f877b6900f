"""What an optimizer does next: a pure function of the registry and of who is alive.

A version is worked on under the attempt that won in the log. The next attempt may be claimed once the owner of the
present one is gone: its heartbeat is missing, or it was an earlier run of this instance. After `MAX_ATTEMPTS` claims
without a step finished between them the next owner gives the next step up (`job`). Oldest uploads first; of versions
that ask for the same work only the oldest, so that the others find it done.

Who may call another dead: only an optimizer that has heard its own heartbeat come back without a break for longer than
a heartbeat may take. One that has just started has not listened yet, and one that was cut off from Kafka has heard
nobody: `Listening` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.optimizer.plan import work
from shared.heartbeats import INTERVAL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from shared.registry import Registry, Version

LISTEN_S = 3 * INTERVAL_S
"""A live instance is heard of within two intervals and a second (`shared.heartbeats`), so within this."""

Key = tuple[str, int]
"""A version: model and number."""


@dataclass(frozen=True)
class Work:
    """A version to take on, under `attempt`."""

    version: Version
    attempt: int
    held: bool = False
    """The attempt is already ours: an earlier try failed for want of Kafka or the store."""


def next_work(
    registry: Registry,
    owner: str,
    is_dead: Callable[[str], bool],
    parked: Collection[Key] = (),
    can_do: Callable[[Version], bool] = lambda _: True,
) -> Work | None:
    """The oldest version that `owner` may take on now, except the parked ones and what it can't do.

    `is_dead` answers for other owners; whether an owner is an earlier run of this instance is seen here.
    """
    open_versions = sorted(_unfinished(registry), key=lambda version: (version.uploaded_ms, version.model))
    older: set[str] = set()
    for version in open_versions:
        asked = work(version)
        if asked in older:
            continue
        older.add(asked)
        if (version.model, version.number) in parked or not can_do(version):
            continue
        if version.owner == owner:
            return Work(version, version.attempt, held=True)
        if version.owner is None or _is_earlier_self(version.owner, owner) or is_dead(version.owner):
            return Work(version, version.attempt + 1)
    return None


def is_held(registry: Registry, work: Work, owner: str) -> bool:
    """Whether the attempt is ours and still counts: its version was not finished, retired or taken over."""
    model = registry.models.get(work.version.model)
    version = model.versions.get(work.version.number) if model else None
    if version is None or version.state != "optimizing":
        return False
    return (version.attempt, version.owner) == (work.attempt, owner)


def _unfinished(registry: Registry) -> Iterator[Version]:
    for model in registry.models.values():
        for version in model.versions.values():
            if version.is_open:
                yield version


def _is_earlier_self(other: str, owner: str) -> bool:
    return other.partition("/")[0] == owner.partition("/")[0]


class Listening:
    """Since when this instance has heard its own heartbeat without a break."""

    def __init__(self, owner: str, is_alive: Callable[[str], bool], clock: Callable[[], float]) -> None:
        self._owner = owner
        self._is_alive = is_alive
        self._clock = clock
        self._since_s: float | None = None

    def update(self) -> None:
        """Look at the own heartbeat; to be called at least every interval."""
        if not self._is_alive(self._owner):
            self._since_s = None
        elif self._since_s is None:
            self._since_s = self._clock()

    def is_dead(self, other: str) -> bool:
        """Whether `other` would have been heard of by now if it were alive."""
        listened = self._since_s is not None and self._clock() - self._since_s >= LISTEN_S
        return listened and not self._is_alive(other)
