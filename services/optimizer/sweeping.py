"""Files of candidates that came to nothing leave the store: those of rejected ones, and the states of ended trainings.

What may go is said by the registry alone (`unneeded`, pure): files of steps of versions that are done, whose digest
nothing else in it names, be it a version, a variant, an export, somebody's data or a provenance. Outcomes name variants
only, which the registry never forgets. What a step *found* stays. And only what has lain there for `sweep_after_s`
goes: until then the same upload, or another policy, finds it; later it would be built again.

Every optimizer does it, now and then, a bounded number at a time: deleting twice is deleting once. Who stores the very
same bytes in the moment between the look at an object's age and its deletion finds them gone, and makes them again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from shared import logs
from shared.errors import ArtifactNotFound, CallerError, Unavailable
from shared.registry import CANONICAL, TRAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.optimizer.settings import OptimizerSettings
    from shared.artifacts import Artifact, ArtifactStore
    from shared.registry import Registry, Step, Version

_EVERY_S: Final = 3600.0
_MOST: Final = 1000
"""Files looked at in one go; the rest in the next one."""
_DONE: Final = frozenset({"ready", "retired"})
_OWN: Final = frozenset({CANONICAL, TRAIN})
"""Steps whose file is the version's model."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


async def run(settings: OptimizerSettings, store: ArtifactStore, registry: Callable[[], Registry]) -> None:
    """Sweep now and then until cancelled."""
    seen: set[str] = set()
    while True:
        await asyncio.sleep(_EVERY_S)
        await sweep(settings, store, registry(), seen)


async def sweep(settings: OptimizerSettings, store: ArtifactStore, registry: Registry, gone: set[str]) -> int:
    """Delete what is not needed and old enough; how many. `gone` are those that need not be looked for again."""
    swept = 0
    files = await asyncio.to_thread(unneeded, registry)  # it goes through everything
    for artifact in [each for each in files if each.sha256 not in gone][:_MOST]:
        try:
            if not await store.delete(artifact, older_than_s=settings.sweep_after_s):
                continue
            swept += 1
        except (ArtifactNotFound, CallerError):
            pass  # gone already, or never ours
        except Unavailable as err:
            logs.get().warning("not swept", error=err.message)
            break
        gone.add(artifact.sha256)
    if swept:
        logs.get().info("swept", files=swept)
    return swept


def unneeded(registry: Registry) -> list[Artifact]:
    """The files of steps that nothing needs any more, in a fixed order."""
    versions = [version for model in registry.models.values() for version in model.versions.values()]
    idle = {id(step) for version in versions for step in _idle(version)}
    named = set(_digests(registry, idle))
    files = {step.file.sha256: step.file for version in versions for step in _idle(version) if step.file is not None}
    return [files[sha256] for sha256 in sorted(files.keys() - named)]


def _idle(version: Version) -> Iterator[Step]:
    """Steps whose files serve nobody: their candidates were rejected, or they are states of a training that ended."""
    if version.state in _DONE:
        needed = {*version.variants, *_OWN}
        yield from (each for each in version.steps.values() if each.name not in needed)


def _digests(value: Any, idle: set[int]) -> Iterator[str]:
    """Every digest that is named anywhere in a value, except as the file of an idle step.

    All fields of everything are gone through, so that one that is added later counts without a word here.
    """
    if isinstance(value, str):
        if _DIGEST.fullmatch(value):
            yield value
        return
    if isinstance(value, Mapping):
        parts: list[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, tuple | list | set | frozenset):
        parts = [*value]
    elif isinstance(value, Struct):
        parts = [getattr(value, name) for name in value.__struct_fields__]
    elif is_dataclass(value):
        names = (each.name for each in fields(value))
        parts = [getattr(value, name) for name in names if not (name == "file" and id(value) in idle)]
    else:
        return
    for part in parts:
        yield from _digests(part, idle)
