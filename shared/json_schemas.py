"""JSON Schemas out of types, for the two documents that describe us: OpenAPI (HTTP) and AsyncAPI (the log).

Types are the source, so that a document can't say what the code does not do. Python's anchors in patterns are written
as those of ECMA-262, which JSON Schema has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.json import schema_components

if TYPE_CHECKING:
    from collections.abc import Iterable

_TEMPLATE = "#/components/schemas/{name}"


def reference(name: str) -> dict[str, str]:
    """A reference to a schema of the document's components."""
    return {"$ref": _TEMPLATE.format(name=name)}


def schemas_of(types: Iterable[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A schema for each type, in order, and the components that they refer to, by name."""
    schemas, components = schema_components(types, ref_template=_TEMPLATE)
    return [_ecma(schema) for schema in schemas], _ecma(components)


def _ecma(schema: Any) -> Any:
    """The schema with its patterns in the dialect of JSON Schema."""
    if isinstance(schema, dict):
        return {key: _anchored(value) if key == "pattern" else _ecma(value) for key, value in schema.items()}
    return [_ecma(each) for each in schema] if isinstance(schema, list | tuple) else schema


def _anchored(pattern: Any) -> Any:
    """A property may be called `pattern`, too."""
    return pattern.replace(r"\A", "^").replace(r"\Z", "$") if isinstance(pattern, str) else _ecma(pattern)
