"""Hypothesis strategies for events, read from the structs themselves: a new field is covered when it is added."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st
from msgspec import inspect

from shared.optimization import Search, Training, WarmStart
from shared.processing import Processing
from shared.runtime_config import InstanceGroup, Parameters, RuntimeConfig
from shared.signature import Signature
from support.facts import PROCESSING, SIGNATURE

INT64 = 2**63 - 1
TRAINING = Training(train=("fc*",), search=Search(), warm_start=WarmStart(model="other", version=1))
RUNTIME = RuntimeConfig(
    max_batch_size=8,
    instance_group=(InstanceGroup(kind="KIND_CPU", count=2),),
    parameters=Parameters(intra_op_thread_count=2, inter_op_thread_count=1, execution_mode=1),
)
FIXED = {Signature: SIGNATURE, Processing: PROCESSING, Training: TRAINING, RuntimeConfig: RUNTIME}
"""Structs whose fields belong together in ways that their types do not tell."""


@cache  # types don't change, and to look at the larger ones takes longer than the rest of an example
def events(event_type: type[Any]) -> st.SearchStrategy[Any]:
    """Any value of this struct of the schema that is written."""
    return _values(inspect.type_info(event_type))


def _values(kind: Any) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.StructType(cls=cls) if cls in FIXED:
            return st.just(FIXED[cls])
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: _values(field.type) for field in fields if field.name != "schema"})
        case inspect.UnionType(types=types):
            return st.one_of(*map(_values, types))
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.VarTupleType(item_type=item):
            return st.lists(_values(item), min_size=kind.min_length or 0, max_size=3).map(tuple)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(_values, items))
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_values(key), _values(value), max_size=3)
    return _scalar(kind)


def _scalar(kind: Any) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.StrType(pattern=pattern) if pattern is not None:
            return st.from_regex(pattern, fullmatch=True)
        case inspect.StrType():
            # Surrogates are no characters and have no UTF-8.
            characters = st.characters(exclude_categories=["Cs"])
            return st.text(characters, min_size=kind.min_length or 0, max_size=min(20, kind.max_length or 20))
        case inspect.BytesType(min_length=least, max_length=most):
            return st.binary(min_size=least or 0, max_size=min(20, most or 20))
        case inspect.IntType(ge=least, le=most):
            return st.integers(-INT64 if least is None else least, INT64 if most is None else most)
        case inspect.FloatType():
            return _float(kind)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
    raise TypeError(f"no strategy for {kind}")


def _float(kind: inspect.FloatType) -> st.SearchStrategy[float]:
    least, most = (one if other is None else other for one, other in ((kind.ge, kind.gt), (kind.le, kind.lt)))
    above, below = kind.gt is not None, kind.lt is not None
    return st.floats(least, most, exclude_min=above, exclude_max=below, allow_nan=False)


def required(event_type: type[Any]) -> list[str]:
    """The names of the fields without a default."""
    fields = inspect.type_info(event_type).fields
    return [field.name for field in fields if field.required]
