"""Who is compared in a back-test: `MODEL:VERSION`, or one variant of it, `MODEL:VERSION/VARIANT`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shared.errors import InvalidInput, UnknownVersion

if TYPE_CHECKING:
    from shared.registry import Registry, Variant

_NAME: Final = re.compile(
    r"(?P<model>[A-Za-z0-9][A-Za-z0-9-]{0,99}):(?P<version>[0-9]{1,9})(/(?P<variant>[^/]{1,200}))?"
)


@dataclass(frozen=True)
class Contender:
    """A variant that recorded requests can run on."""

    model: str
    version: int
    variant: Variant

    def __str__(self) -> str:
        return f"{self.model}:{self.version}/{self.variant.name}"


def contender(name: str, registry: Registry) -> Contender:
    """The contender of a name; without a variant it is the one that serves, or would.

    Raises:
        InvalidInput: it is no such name.
        UnknownModel, UnknownVersion: there is none.
        ModelNotReady: the version has no variant yet.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise InvalidInput(f"{name!r} is not MODEL:VERSION or MODEL:VERSION/VARIANT")
    version = registry.version(parts["model"], int(parts["version"]))
    if (wanted := parts["variant"]) is None:
        return Contender(version.model, version.number, version.serving)
    if wanted not in version.variants:
        there = ", ".join(sorted(version.variants)) or "none"
        raise UnknownVersion(f"version {version.number} of {version.model!r} has no variant {wanted!r}, but {there}")
    return Contender(version.model, version.number, version.variants[wanted])
