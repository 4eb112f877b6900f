"""What an attempt is about: a version and what else the log says of it; and whom it tells what it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared import registry
from shared.registry import MAX_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from services.optimizer.progress import Progressed
    from shared.artifacts import Artifact
    from shared.events import FormatRecognised, StepFinished, StepPlace
    from shared.optimization import Policy
    from shared.registry import Registry, Step, Version
    from shared.signature import Signature


@dataclass(frozen=True)
class Task:
    """A version to work on, and what else in the log is about it."""

    version: Version
    parent: Version | None = None
    policy: Policy | None = None
    """The model's."""
    elsewhere: Mapping[str, tuple[StepPlace, Step]] = field(default_factory=dict)
    """What is finished of other versions, by key."""
    warm_start: Artifact | None = None
    """The file that an update's weights may begin with."""
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    """Of the models that answer now, by name."""

    @property
    def blame(self) -> bool:
        """Whether optimizers died, again and again, of the step that comes next."""
        return self.version.stalled > MAX_ATTEMPTS

    @classmethod
    def of(cls, known: Registry, version: Version) -> Task:
        """The task of a version."""
        model = known.model(version.model)
        parent = None if version.parent is None else model.versions.get(version.parent)
        asked = None if version.training is None else version.training.warm_start
        source = None if asked is None else known.models.get(asked.model)
        begun = None if source is None or asked is None else source.versions.get(asked.version)
        return cls(
            version,
            parent,
            model.policy,
            registry.finished(known),
            None if begun is None else begun.model_file,
            _signatures(known),
        )


def _signatures(known: Registry) -> dict[str, Signature]:
    return {
        name: model.versions[model.active].serving.signature
        for name, model in known.models.items()
        if model.active is not None
    }


@dataclass(frozen=True)
class Hooks:
    """Whom an attempt tells what it does."""

    on_progress: Callable[[Progressed], Awaitable[None]]
    record: Callable[[StepFinished | FormatRecognised], Awaitable[None]]
    """Returns when it is in the log."""
