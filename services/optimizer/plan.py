"""The plan of a version: which steps, in which order, from which file. Pure.

Without options a plan holds what makes sense within the optimizer's means: quantizations always, since a model's own
answers on made-up inputs can judge them; what changes a model more (pruning, distilling) only where there are data to
heal and to judge it with; fp16 only where a GPU waits for it. Cheap steps come first: when the time is over, what was
not tried is what costs most. A name that is asked for and means nothing is a step that fails, with that as its reason.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from services.optimizer.actions import (
    COMPARE,
    ELSEWHERE,
    INPUTS,
    REFERENCE,
    TRAINING,
    UPLOAD,
    Compare,
    Convert,
    Distil,
    Draw,
    Elsewhere,
    Prune,
    Quantize,
    Refer,
    Sample,
    Sensitive,
    Sparsify,
    Spec,
    Train,
)
from services.optimizer.recipes.registry import DETERMINISTIC, RECIPES
from shared.optimization import LoggedRequests, Optimization
from shared.registry import CANONICAL, TRAIN
from shared.runtime_config import TORCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from services.optimizer.actions import Action
    from shared.events import MachineClass
    from shared.registry import Version

_ALWAYS: Final = ("int8-weight-only", "int4-weight-only", "int8-static", "int8-static-products", "int8-dynamic")
_GPU: Final = ("fp16",)
_WITH_DATA: Final = ("pruned-50", "pruned-50-int8-static", "student", "student-int8-static")
_LAST: Final = ("int8-static-sensitive",)
"""It runs the model once for each of its layers."""
_SHARED: Final = re.compile(r"(pruned|sparse|student)-([1-9][0-9]?)")
_STUDENT: Final = "student"
_SENSITIVE: Final = "int8-static-sensitive"
SAME_BYTES: Final[frozenset[str]] = DETERMINISTIC
"""The recipes that give the same bytes again from the same file and data, with the same tools on a class of machine."""


class UnknownCandidate(Exception):
    """Nothing is called that."""


@dataclass(frozen=True)
class Means:
    """What this optimizer has to work with."""

    training: bool = False
    """Its children have torch."""
    gpu: bool = False
    """A worker with a GPU was heard of."""
    others: tuple[MachineClass, ...] = ()
    """The classes of live workers that are not its own: they measure there."""
    here: bool = False
    """A worker of its own class is up."""
    machine: str = ""
    """Its class: what is measured here holds there."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Versions by library."""


@dataclass(frozen=True)
class Plan:
    """Steps in their order, and why candidates that were asked for have none."""

    steps: tuple[Spec, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Spec:
        return next(spec for spec in self.steps if spec.name == name)


def plan(version: Version, means: Means) -> Plan:
    """What is to be done for a version."""
    options = version.optimization or Optimization()
    steps = [
        Spec(name=role, action=Draw(source=source))
        for role, source in options.sources.items()
        if isinstance(source, LoggedRequests)
    ]
    start = UPLOAD
    if version.training is not None:
        steps.append(Spec(name=TRAIN, action=Train(training=version.training)))
        start = TRAIN
    elif version.recognised is not None:
        steps.append(Spec(name=CANONICAL, action=Convert(format=version.recognised)))
        start = CANONICAL
    steps.append(Spec(name=REFERENCE, action=Refer(), base=start))
    if version.training is not None:
        steps.append(Spec(name=COMPARE, action=Compare(), base=REFERENCE))
    wanted = list(options.candidates) if options.candidates is not None else list(_sensible(means, options))
    unknown = []
    for name in wanted:
        try:
            steps += [spec for spec in candidate(name) if spec not in steps]
        except UnknownCandidate:
            unknown.append(name)
    if means.others and any(spec.base not in (UPLOAD, start) and spec.name != COMPARE for spec in steps):
        steps.insert(
            1 + [spec.name for spec in steps].index(REFERENCE), Spec(name=INPUTS, action=Sample(), base=REFERENCE)
        )
        asked = Elsewhere(machines=means.others, here=means.here)
        steps.append(Spec(name=ELSEWHERE, action=asked, base=REFERENCE))
    return Plan(tuple(steps), dict.fromkeys(unknown, "nothing is called that"))


def as_it_is(version: Version, means: Means) -> Plan:
    """What is to be done for a version whose upload did not become ONNX: torch runs it, and nothing is built of it."""
    asked = (version.optimization or Optimization()).candidates or ()
    steps = [
        msgspec.structs.replace(spec, action=Refer(engine=TORCH)) if spec.name == REFERENCE else spec
        for spec in plan(version, means).steps
        if isinstance(spec.action, Draw | Convert | Refer)
    ]
    return Plan(tuple(steps), dict.fromkeys(asked, "candidates are built from ONNX, which the upload did not become"))


def _sensible(means: Means, options: Optimization) -> Iterator[str]:
    yield from _ALWAYS
    if means.gpu:
        yield from _GPU
    if means.training and options.data is not None:
        yield from _WITH_DATA
    yield from _LAST


def candidate(name: str) -> list[Spec]:
    """The steps that make a candidate, itself last: `pruned-50-int8-static` prunes, then quantizes.

    Raises:
        UnknownCandidate: nothing is called that.
    """
    if name in RECIPES:
        return [Spec(name=name, action=RECIPES[name], base=REFERENCE)]
    if name == _SENSITIVE:
        return [Spec(name=name, action=Sensitive(), base=REFERENCE)]
    first, rest = _first(name)
    if not rest:
        return [Spec(name=first, action=_shrinking(first), base=REFERENCE)]
    *_, then = candidate(rest)
    if not isinstance(then.action, Quantize | Sensitive):
        raise UnknownCandidate(name)  # prune before quantizing; nothing else is combined
    return [*candidate(first), Spec(name=name, action=then.action, base=first)]


def _first(name: str) -> tuple[str, str]:
    """`pruned-50-int8-static` as `pruned-50` and `int8-static`."""
    found = _SHARED.match(name)
    first = found.group() if found else _STUDENT
    if name != first and (not name.startswith(f"{first}-") or name.endswith("-")):
        raise UnknownCandidate(name)
    return first, name[len(first) + 1 :]


def _shrinking(name: str) -> Action:
    if name == _STUDENT:
        return Distil()
    kind, _, percent = name.partition("-")
    share = int(percent) / 100
    match kind:
        case "pruned":
            return Prune(share=share)
        case "sparse":
            return Sparsify(share=share)
        case _:
            return Distil(width=share)


def needs_training(steps: Iterable[Spec]) -> bool:
    """Whether one of the steps can only be done where there is torch."""
    return any(isinstance(spec.action, TRAINING) for spec in steps)


def keys(
    plan: Plan, version: Version, means: Means, data: Mapping[str, str], finished: Mapping[str, str]
) -> dict[str, str]:
    """By step, the digest of all that its result depends on; `data` are the data sets' digests by role.

    What is `finished` keeps the key that it was finished under, whoever finished it.
    """
    options = version.optimization or Optimization()
    common = {
        "seed": options.seed,
        "holdout": options.holdout,
        "data": dict(data),
        "tools": dict(means.tools),
        "machine": means.machine,
        "processing": version.processing,
    }
    found = {UPLOAD: version.artifact.sha256}
    reference: str | None = None
    for spec in plan.steps:
        own = {"action": spec.action, "base": found[spec.base], "reference": reference, **common}
        if isinstance(spec.action, Draw) and not spec.action.is_pinned:
            own["drawn_for"] = [version.model, version.number]  # the log goes on
        found[spec.name] = finished.get(spec.name) or _digest(own)
        reference = found[spec.name] if spec.name == REFERENCE else reference
        if spec.name == ELSEWHERE:
            found[spec.name] = finished.get(spec.name) or _digest([own, sorted(found.values())])
    del found[UPLOAD]
    return found


def part_of(key: str, name: str) -> str:
    """The key of a part of a step, such as a checkpoint."""
    return _digest([key, name])


def work(version: Version) -> str:
    """The digest of what is asked for: versions that have it in common are worked on one after the other."""
    parts = (version.artifact.sha256, version.processing, version.optimization, version.training)
    return _digest(parts)


def _digest(value: Any) -> str:
    plain = msgspec.to_builtins(value, str_keys=True)
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
