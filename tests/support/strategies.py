"""Hypothesis strategies for events, read from the models themselves: a new field is covered when it is added."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import StringConstraints
from pydantic.fields import FieldInfo

from shared.events import Fields
from shared.signature import Signature
from support.facts import SIGNATURE

INT64 = 2**63 - 1


def events(event_type: type[Fields]) -> st.SearchStrategy[Any]:
    """Any value of this model."""
    return st.builds(event_type, **{name: _field(field) for name, field in event_type.model_fields.items()})


def _field(field: FieldInfo) -> st.SearchStrategy[Any]:
    return _values(field.annotation, list(field.metadata))


def _values(annotation: Any, rules: list[Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(arguments[0], [*rules, *_flat(arguments[1:])])
    if origin in (Union, UnionType):
        return st.one_of(*(_values(argument, rules) for argument in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(_values(arguments[0], []), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(_values(arguments[0], []), _values(arguments[1], []), max_size=3)
    if annotation is Signature:
        return st.just(SIGNATURE)
    if (isinstance(annotation, type) and issubclass(annotation, Fields)) or hasattr(annotation, "model_fields"):
        return events(annotation)
    return _scalar(annotation, rules)


def _scalar(annotation: Any, rules: list[Any]) -> st.SearchStrategy[Any]:
    if annotation is str:
        pattern = _rule(rules, "pattern", None)
        if pattern is not None:
            return st.from_regex(pattern, fullmatch=True).filter(lambda text: not text.endswith("\n"))
        # Surrogates are no characters and have no UTF-8.
        return st.text(
            st.characters(exclude_categories=["Cs"]),
            min_size=_rule(rules, "min_length", 0),
            max_size=min(20, _rule(rules, "max_length", 20)),
        )
    if annotation is int:
        return st.integers(_rule(rules, "ge", -INT64), _rule(rules, "le", INT64))
    if annotation is float:
        return st.floats(allow_nan=False)
    return st.booleans() if annotation is bool else st.none()


def _flat(metadata: tuple[Any, ...]) -> list[Any]:
    return [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _rule(rules: list[Any], name: str, default: Any) -> Any:
    for rule in rules:
        value = getattr(rule, name, None)
        if value is not None and not (isinstance(rule, StringConstraints) and name in {"ge", "le"}):
            return value
    return default
