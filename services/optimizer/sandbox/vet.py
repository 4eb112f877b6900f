"""Vetting: what a file must be before ONNX Runtime may see it.

From cheap to dear: it parses as a `ModelProto` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), refers to no
file but itself, uses allowed operator domains, is of an age that runs here, and passes onnx's own checker. References
are looked for in every message of the tree, whatever field it hangs in: initializers, attributes, subgraphs,
functions, sparse tensors, and what a later onnx adds.

Whether it loads, runs, ends and stays within memory shows when it is run, later and under limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs in our environment

from services.optimizer.conversion.recognise import describe
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIN_IR_VERSION: Final = 3
_MIN_OPSET: Final = 7
"""The oldest that ONNX Runtime promises to run (https://onnxruntime.ai/docs/reference/compatibility.html)."""
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_ONNX_DOMAINS: Final = ("", "ai.onnx")
_READS_FILES: Final = frozenset({"EPContext"})
"""Operators of allowed domains that name files of their own."""
_MAX_NODES: Final = 1_000_000


def parse(content: bytes) -> onnx.ModelProto:
    """The file as a model that may be loaded.

    Raises:
        Rejection: with what is wrong, in words for its uploader.
    """
    model = _decode(content)
    parts = list(messages(model))
    _no_references(parts)
    _allowed_operators(model, parts)
    _versions(model)
    try:
        onnx.checker.check_model(model)
    except Exception as err:  # onnx raises its ValidationError and whatever its C++ throws
        raise Rejection("invalid_model", f"onnx.checker: {err}") from err
    return model


def _decode(content: bytes) -> onnx.ModelProto:
    seems = describe(content)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as err:
        if seems is None:
            found = f"The file is not ONNX, or it is truncated: {len(content)} bytes that do not parse ({err})"
            raise Rejection("invalid_model", found) from err
        raise Rejection("unsupported_format", f"The file is {seems}") from err
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise Rejection("unsupported_format", f"The file is {seems or 'not an ONNX model: it has no graph'}")
    return model


def messages(root: Any) -> Iterator[Any]:
    """Every message of the tree below `root`, itself included."""
    pending, seen = [root], 0
    while pending:
        message = pending.pop()
        yield message
        seen += 1
        if seen > _MAX_NODES:
            raise Rejection("invalid_model", f"The file has more than {_MAX_NODES} parts")
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending.extend([value] if hasattr(value, "ListFields") else value)


def _no_references(parts: list[Any]) -> None:
    for message in parts:
        if isinstance(message, onnx.TensorProto) and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            location = next((entry.value for entry in message.external_data if entry.key == "location"), "")
            found = f"Tensor {message.name[:100]!r} lies outside the file, in {location[:200]!r}"
            raise Rejection("external_data", found)


def _allowed_operators(model: onnx.ModelProto, parts: list[Any]) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    for message in parts:
        if not isinstance(message, onnx.NodeProto) or (message.domain, message.op_type) in local:
            continue
        if message.domain not in _DOMAINS:
            found = f"Operator {message.op_type[:100]!r} is of domain {message.domain[:100]!r}"
            raise Rejection("operator_domain", found)
        if message.op_type in _READS_FILES:
            raise Rejection("operator_domain", f"Operator {message.op_type!r} refers to other files")


def _versions(model: onnx.ModelProto) -> None:
    if not _MIN_IR_VERSION <= model.ir_version <= onnx.IR_VERSION:
        found = f"IR version {model.ir_version} is not within {_MIN_IR_VERSION} to {onnx.IR_VERSION}"
        raise Rejection("unsupported_opset", found)
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in _ONNX_DOMAINS and not _MIN_OPSET <= opset.version <= newest:
            raise Rejection("unsupported_opset", f"Opset {opset.version} is not within {_MIN_OPSET} to {newest}")
