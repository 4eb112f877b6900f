"""The canonical form: opset 20, free dimensions that have names, where it came from in its metadata, no debris.

Opset 20, since 23 and 24 load and then fail in a run where a mask broadcasts. What an exporter calls `s77` or `unk__3`
is called `batch` where it is the first axis, and after its tensor elsewhere; names that a person gave are kept.
Whether the result is a valid model is not looked at here: `sandbox.vet` does, as of any other model.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import onnx
from onnx import version_converter

from services.optimizer.conversion.source import NotConvertible, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import GraphProto, ModelProto, ValueInfoProto

OPSET: Final = 20
PRODUCER: Final = "aiaas"
_MADE_UP: Final = re.compile(r"\A(s\d+|u\d+|unk__\d+|dynamic|unknown|None|none|\?|-1|)\Z")
_BATCH: Final = "batch"


def canonical(model: ModelProto, about: dict[str, str]) -> ModelProto:
    """The model in that form; `about` becomes its metadata, each name with `aiaas.` in front.

    Raises:
        NotConvertible: its operators have no form in opset 20.
    """
    model = _at_opset(model)
    names = _named(model.graph)
    _clean(model.graph)
    for function in model.functions:
        function.doc_string = ""
        for node in function.node:
            node.doc_string = ""
            node.ClearField("metadata_props")
    _rename(model.graph, names)
    model.producer_name, model.producer_version = PRODUCER, "1"
    model.doc_string = ""
    del model.metadata_props[:]
    for key, value in sorted(about.items()):
        model.metadata_props.add(key=f"aiaas.{key}", value=value)
    return model


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def _at_opset(model: ModelProto) -> ModelProto:
    if opset_of(model) == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as err:  # what its C++ throws
        raise NotConvertible(f"The model has no form in opset {OPSET}: {first_line(err)}") from err


def _clean(graph: GraphProto) -> None:
    """Leave out what exporters keep for debugging: file names, stack traces, shapes of values in between."""
    graph.doc_string = ""
    graph.ClearField("metadata_props")
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        value.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.doc_string = ""
        tensor.ClearField("metadata_props")
    for node in graph.node:
        node.doc_string = ""
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _clean(attribute.g)


def _named(graph: GraphProto) -> dict[str, str]:
    """New names of the free dimensions of inputs, by what they were called."""
    initialized = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for value, axis, name in _free(value for value in graph.input if value.name not in initialized):
        if not name or name in names:
            continue
        wanted = name if not _MADE_UP.match(name) else _BATCH if axis == 0 else f"{value.name}_{axis}"
        while wanted in taken:
            wanted += "_"
        taken.add(wanted)
        names[name] = wanted
    return names


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        for axis, dim in enumerate(kind.shape.dim):
            if dim.HasField("dim_value"):
                continue
            fresh = _BATCH if axis == 0 and value in graph.input else f"{value.name}_{axis}"
            dim.dim_param = names.get(dim.dim_param) or (dim.dim_param if _is_said(dim.dim_param) else fresh)


def _is_said(name: str) -> bool:
    return name.isidentifier() and not _MADE_UP.match(name)


def _free(values: Iterable[ValueInfoProto]) -> Iterable[tuple[ValueInfoProto, int, str]]:
    for value in values:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                yield value, axis, dim.dim_param


def loaded(content: bytes) -> ModelProto:
    """Bytes that an exporter of ours wrote, as a model."""
    return onnx.load_model_from_string(content)
