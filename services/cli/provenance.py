"""Where a model's files come from, as a tree: each below what it was made of, with recipe, seed, data and tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape
from rich.tree import Tree

from services.cli.printing import size

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN: Final = 12
"""Of a digest."""


def tree(model: dict[str, Any]) -> Tree:
    """All versions of a model, the oldest first, an update below the version that it was trained from."""
    root = Tree(f"[bold]{escape(model['name'])}[/]")
    places: dict[int, Tree] = {}
    for version in sorted(model["versions"], key=lambda each: int(each["version"])):
        below = places.get(version.get("parent") or 0, root)
        places[version["version"]] = below.add(_version(version))
        _variants(version, places[version["version"]])
    return root


def _version(version: dict[str, Any]) -> str:
    about = f"version {version['version']}: {version['state']}, {_digest(version['sha256'])}"
    training = version.get("training")
    if training is not None:
        how = ", ".join(f"{name} {value}" for name, value in training.items() if _is_said(value))
        about += f", trained from version {version['parent']} ({escape(how)})"
    return about


def _is_said(value: Any) -> bool:
    return value is not None and value not in ([], ["*"], False)


def _variants(version: dict[str, Any], below: Tree) -> None:
    """Each variant, kept or rejected, below the file that it was made of."""
    made = list(_made(version))
    places = {version["sha256"]: below}
    while made:
        ready = [each for each in made if each[1]["parent_sha256"] in places] or made
        for name, provenance, sha256, byte_size in ready:
            place = places.get(provenance["parent_sha256"], below).add(_made_of(name, provenance, sha256, byte_size))
            if sha256 is not None:
                places.setdefault(sha256, place)
            if name == "fp32":
                places[version["sha256"]] = place  # what starts from fp32 starts from the version's file
        made = [each for each in made if each not in ready]


def _made(version: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str | None, int]]:
    files = {step["name"]: step["sha256"] for step in version.get("steps", ())}
    for variant in version["variants"]:
        if variant.get("provenance"):
            yield variant["name"], variant["provenance"], variant["sha256"], variant["byte_size"]
    for rejection in version["rejected"]:
        if rejection.get("provenance"):
            measured = rejection["measurements"] or {}
            name = rejection["variant"]
            yield f"{name} (rejected)", rejection["provenance"], files.get(name), measured.get("byte_size") or 0


def _made_of(name: str, provenance: dict[str, Any], sha256: str | None, byte_size: int) -> str:
    parts = [f"[bold]{escape(name)}[/]"]
    parts += [_digest(sha256)] if sha256 is not None else []
    parts += [size(byte_size)] if byte_size else []
    parts.append(f"recipe {escape(provenance['recipe'])}, seed {provenance['seed']}")
    for role, used in provenance["data"].items():
        where = f", {', '.join(f'{at} {span[0]} to {span[1]}' for at, span in used['offsets'].items())}"
        rows = f" {used['rows']} rows" if used["rows"] else ""
        parts.append(f"{role}{rows} {_digest(used['sha256'])}{where if used['offsets'] else ''}")
    parts.append(" ".join(f"{tool} {version}" for tool, version in provenance["tools"].items()))
    if provenance["same_bytes"]:
        parts.append("gives the same bytes again")
    return "; ".join(part for part in parts if part)


def _digest(sha256: str) -> str:
    return f"[dim]{sha256[:_SHOWN]}[/]"
