"""The inference response of the Open Inference Protocol v2 as bytes: JSON, or a JSON header and raw tensors.

An output that is an object in the artifact store, too, says so in its `parameters` (`uri`, `sha256`, `byte_size`), and
has no `data` if nobody has fetched it; the header alone (`encode_header`) is for whoever sends the bytes from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from msgspec import structs

from shared.tensors import to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from shared.oip import InferenceRequest
    from shared.tensors import Tensor


def binary_outputs(request: InferenceRequest, names: Collection[str]) -> frozenset[str]:
    """Which of the outputs in `names` the caller wants in binary.

    An output's own `binary_data` decides; else the request's `binary_data_output`; else JSON.
    """
    if not request.outputs and not request.parameters:
        return frozenset()
    default = request.parameters.get("binary_data_output") is True
    asked = {output.name: output.binary for output in request.outputs if output.binary is not None}
    return frozenset(name for name in names if asked.get(name, default))


def encode_json(
    *, model_name: str, model_version: int | str, outputs: Sequence[Tensor], echo_id: str | None = None
) -> bytes:
    """A response body in JSON.

    Raises:
        InvalidInput: a BYTES output is not UTF-8 and must be asked for in binary.
    """
    return _response_header(model_name, model_version, echo_id, [_json_output(tensor) for tensor in outputs])


def encode_binary(
    *,
    model_name: str,
    model_version: int | str,
    outputs: Sequence[Tensor],
    echo_id: str | None = None,
    binary: Collection[str] | None = None,
) -> tuple[bytes, int]:
    """A response body with the outputs named in `binary` (None: all) behind the JSON header.

    Returns:
        The body and its header's length in bytes, for `Inference-Header-Content-Length`.

    Raises:
        InvalidInput: a BYTES output that stays in JSON is not UTF-8.
    """
    names = {tensor.name for tensor in outputs} if binary is None else binary
    header = encode_header(
        model_name=model_name, model_version=model_version, outputs=outputs, echo_id=echo_id, binary=names
    )
    return b"".join([header, *(tensor.data for tensor in outputs if tensor.name in names)]), len(header)


def encode_header(
    *,
    model_name: str,
    model_version: int | str,
    outputs: Sequence[Tensor],
    echo_id: str | None,
    binary: Collection[str],
) -> bytes:
    """The JSON header of a binary response, before the bytes of the outputs named in `binary`, wherever these are.

    Raises:
        InvalidInput: a BYTES output that stays in JSON is not UTF-8.
    """
    described = [_binary_output(tensor) if tensor.name in binary else _json_output(tensor) for tensor in outputs]
    return _response_header(model_name, model_version, echo_id, described)


def _response_header(model_name: str, version: int | str, echo_id: str | None, outputs: list[dict[str, Any]]) -> bytes:
    echoed = {} if echo_id is None else {"id": echo_id}
    response = {"model_name": model_name, "model_version": str(version), **echoed, "outputs": outputs}
    return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)


def _json_output(tensor: Tensor) -> dict[str, Any]:
    output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if tensor.artifact is not None:
        output["parameters"] = _where(tensor)
    if not tensor.claimed:
        output["data"] = to_json(tensor)
    return output


def _binary_output(tensor: Tensor) -> dict[str, Any]:
    parameters = {"binary_data_size": tensor.size_bytes, **_where(tensor)}
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "parameters": parameters}


def _where(tensor: Tensor) -> dict[str, Any]:
    """Where the tensor's bytes are in the artifact store; empty if they are not."""
    return {} if tensor.artifact is None else structs.asdict(tensor.artifact)
