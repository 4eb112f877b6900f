"""The inference request of the Open Inference Protocol v2, as a record and as bytes. `oip_response` is the way back.

A request is the same in three forms, told apart by content type:

- `application/json`: an OIP request body.
- `application/octet-stream`: a JSON header followed by the raw bytes of every tensor with
  `parameters.binary_data_size`, in the header's order; lengths add up exactly. Without a header length the whole body
  is the header. This is Triton's binary tensor data extension
  (https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).
- `application/msgpack`: the same map with a tensor's `data` as raw bytes, or a list as in JSON. What the gateway
  puts on Kafka.

In all of them a tensor's `data` may be a claim check instead: `{uri, sha256, byte_size}`, an object in the artifact
store that holds the tensor's raw bytes. Which store that is, and fetching, is not this module's business.

Fields that nobody knows are ignored, as the protocol asks. Tensors of a binary form are views of the body: keep a
request only as long as its body may stay in memory; `decode_header` reads one whose tensors have not arrived. Shared
memory is refused. Whether a request fits a model is asked of `shared.signature`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import orjson
from msgspec import structs

from shared.artifacts import Artifact
from shared.codec import MSGPACK, pack, unpack
from shared.errors import InvalidInput
from shared.tensors import FloatDatatype, Tensor, check, check_size, claim, from_floats, from_json, refuse

if TYPE_CHECKING:
    from collections.abc import Iterable

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
MAX_TENSORS: Final = 256
"""Inputs, and likewise requested outputs, of one request."""
MAX_PARAMETERS: Final = 64
MAX_NAME_CHARS: Final = 1024

Parameter = str | int | float | bool
Body = bytes | memoryview


class RequestedOutput(msgspec.Struct, frozen=True, gc=False):
    """An output that the caller asks for; `binary` is its `binary_data` parameter, None if not given."""

    name: str
    binary: bool | None = None
    parameters: dict[str, Parameter] = {}


class InferenceRequest(msgspec.Struct, frozen=True, gc=False):
    """One request; no `outputs` means all of them. `id` is the caller's own and only echoed."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str | None = None
    parameters: dict[str, Parameter] = {}


class _Tail:
    """The raw bytes behind a JSON header, taken tensor by tensor."""

    def __init__(self, data: Body) -> None:
        self._data = memoryview(data)
        self._at = 0

    def tensor(self, name: str, datatype: str, shape: tuple[int, ...], size: Any) -> Tensor:
        """A tensor of the next `size` bytes, not copied."""
        if type(size) is not int or not 0 <= size <= len(self._data) - self._at:
            refuse(name, f"has binary_data_size {size!r}, but {len(self._data) - self._at} bytes are left")
        self._at += size
        return check(Tensor(name, datatype, shape, self._data[self._at - size : self._at]))

    def finish(self) -> None:
        """Refuse bytes that no tensor claimed."""
        if self._at != len(self._data):
            raise InvalidInput(f"{len(self._data) - self._at} bytes follow the last binary tensor")


class _TailToCome:
    """The same, of bytes that have not arrived: sizes are held against shapes, and noted."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def tensor(self, name: str, datatype: str, shape: tuple[int, ...], size: Any) -> Tensor:
        """A tensor without its bytes."""
        if type(size) is not int:
            refuse(name, f"has binary_data_size {size!r}, which is no number of bytes")
        tensor = Tensor(name, datatype, shape, b"")
        check_size(tensor, size)
        self.sizes[name] = size
        return tensor

    def finish(self) -> None:
        """Nothing to say: whoever reads the tail compares its end."""


class Announced(msgspec.Struct, frozen=True, gc=False):
    """A binary request of which only the header is there.

    `sizes` are the bytes of each tensor that follows it, by name, in order. In `request` these tensors have no data;
    `with_inputs` gives it to them, and `check` of `shared.tensors` has still to look at it.
    """

    request: InferenceRequest
    sizes: dict[str, int]


def decode_request(content_type: str | None, body: Body, header_length: int | None = None) -> InferenceRequest:
    """Decode a request in any of the three forms; without a content type, JSON is tried.

    `header_length` is the length in bytes of the JSON header (`Inference-Header-Content-Length`). JSON with one is
    read as binary, since clients of Triton send it without a content type.

    Raises:
        InvalidInput: an unknown content type, or a body that breaks the contract, in a sentence that says where.
    """
    media_type = (content_type or JSON).partition(";")[0].strip().lower()
    if media_type == MSGPACK:
        return _msgpack_request(body)
    if media_type not in {JSON, BINARY}:
        raise InvalidInput(f"content type {media_type!r} is none of {JSON}, {MSGPACK}, {BINARY}")
    if header_length is None:
        return _json_request(body)
    if not 0 < header_length <= len(body):
        raise InvalidInput(f"the header length {header_length} is not within the body of {len(body)} bytes")
    view = memoryview(body)
    return _request(_json(view[:header_length]), _Tail(view[header_length:]))


def decode_header(header: Body) -> Announced:
    """Decode the JSON header of a binary request before its tensors are there.

    Raises:
        InvalidInput: the header breaks the contract, sizes that contradict datatype and shape included.
    """
    tail = _TailToCome()
    return Announced(_request(_json(header), tail), tail.sizes)


def with_inputs(request: InferenceRequest, tensors: Iterable[Tensor]) -> InferenceRequest:
    """The request with these inputs in place of its own of the same names."""
    given = {tensor.name: tensor for tensor in tensors}
    return structs.replace(request, inputs=tuple(given.get(tensor.name, tensor) for tensor in request.inputs))


def encode_request_msgpack(request: InferenceRequest) -> bytes:
    """The request as `application/msgpack`; `decode_request` gives it back."""
    outputs = [
        {"name": output.name, "parameters": output.parameters | _given("binary_data", output.binary)}
        for output in request.outputs
    ]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "data": structs.asdict(tensor.artifact) if tensor.artifact and tensor.claimed else tensor.data,
        }
        for tensor in request.inputs
    ]
    return pack(
        _given("id", request.id) | {"parameters": request.parameters, "inputs": inputs, "outputs": outputs},
    )


def _json(text: Body) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as err:
        raise InvalidInput(f"not a JSON document: {err}") from err


def _given(key: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {key: value}


class _Input(msgspec.Struct, gc=False, kw_only=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    shape: tuple[int, ...]
    parameters: Annotated[dict[str, Any], msgspec.Meta(max_length=0)] | None = None


class _PlainInput(_Input, gc=False, kw_only=True):
    datatype: str
    data: Any


class _FloatInput(_Input, gc=False, kw_only=True):
    datatype: FloatDatatype
    data: list[float]


class _Plain(msgspec.Struct, gc=False, kw_only=True):
    """What most requests look like: the data of each input right there, and all outputs wanted."""

    id: str | None = None
    parameters: Annotated[dict[str, Parameter], msgspec.Meta(max_length=MAX_PARAMETERS)] | None = None
    outputs: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None


class _PlainRequest(_Plain, gc=False, kw_only=True):
    inputs: Annotated[list[_PlainInput], msgspec.Meta(max_length=MAX_TENSORS)]


class _FloatRequest(_Plain, gc=False, kw_only=True):
    inputs: Annotated[list[_FloatInput], msgspec.Meta(max_length=MAX_TENSORS)]


_PLAIN_MSGPACK: Final = msgspec.msgpack.Decoder(_PlainRequest)
_FLOATS_JSON: Final = msgspec.json.Decoder(_FloatRequest)
_NO_TAIL: Final = _Tail(b"")


def _msgpack_request(body: Body) -> InferenceRequest:
    """As `_request`, in one pass if it is plain."""
    try:
        return _plain_request(_PLAIN_MSGPACK.decode(body), _NO_TAIL)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _careful_request(unpack(body), _Tail(b""))


def _json_request(body: Body) -> InferenceRequest:
    """As `_request`, in one pass if all its data are floats."""
    try:
        plain = _FLOATS_JSON.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _request(_json(body), _NO_TAIL)
    inputs = tuple([from_floats(each.name, each.datatype, each.shape, each.data) for each in plain.inputs])
    return InferenceRequest(_complete(inputs, _NO_TAIL), (), plain.id, plain.parameters or {})


def _request(document: Any, tail: _Tail | _TailToCome) -> InferenceRequest:
    """A request from its map, whichever form it came in. What is not plain goes the careful way, which says why."""
    try:
        plain = msgspec.convert(document, _PlainRequest)
    except (msgspec.ValidationError, RecursionError):
        return _careful_request(document, tail)
    return _plain_request(plain, tail)


def _plain_request(plain: _PlainRequest, tail: _Tail | _TailToCome) -> InferenceRequest:
    inputs = tuple([_with_data(each.name, each.datatype, each.shape, each.data) for each in plain.inputs])
    return InferenceRequest(_complete(inputs, tail), (), plain.id, plain.parameters or {})


def _careful_request(document: Any, tail: _Tail | _TailToCome) -> InferenceRequest:
    fields = _map(document, "the request")
    echo_id = fields.get("id")
    if echo_id is not None and not isinstance(echo_id, str):
        raise InvalidInput("the request's id must be a string")
    inputs = _complete(tuple(_input(entry, tail) for entry in _entries(fields, "inputs")), tail)
    outputs = tuple(_requested_output(entry) for entry in _entries(fields, "outputs", required=False))
    if len({output.name for output in outputs}) != len(outputs):
        raise InvalidInput("the request names an output twice")
    return InferenceRequest(inputs, outputs, echo_id, _parameters(fields, "the request"))


def _complete(inputs: tuple[Tensor, ...], tail: _Tail | _TailToCome) -> tuple[Tensor, ...]:
    """All inputs of a request, held against what is true of them together."""
    tail.finish()
    if len(inputs) > 1 and len({tensor.name for tensor in inputs}) != len(inputs):
        raise InvalidInput("the request names an input twice")
    return inputs


def _input(entry: Any, tail: _Tail | _TailToCome) -> Tensor:
    """One tensor of `inputs`, checked."""
    fields = _map(entry, "an input")
    name = _name(fields, "an input")
    datatype, shape, data = fields.get("datatype"), fields.get("shape"), fields.get("data")
    if not isinstance(datatype, str):
        refuse(name, "has no datatype")
    if not isinstance(shape, list):
        refuse(name, "has no shape: a list of integers")
    if fields.get("parameters"):
        parameters = _parameters(fields, f"tensor {name!r}")
        if "binary_data_size" in parameters:
            if data is not None:
                refuse(name, "has both data and binary_data_size")
            return tail.tensor(name, datatype, tuple(shape), parameters["binary_data_size"])
    return _with_data(name, datatype, tuple(shape), data)


def _with_data(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Tensor:
    """A tensor whose data, or where it is, stands with it; checked."""
    if isinstance(data, list):
        return from_json(name, datatype, shape, data)
    if isinstance(data, dict):
        return claim(name, datatype, shape, _artifact(name, data))
    if not isinstance(data, bytes | memoryview):
        refuse(name, "has no data: a list of elements, or raw bytes in a binary form; shared memory is not read")
    return check(Tensor(name, datatype, shape, data))


def _artifact(name: str, fields: dict[str, Any]) -> Artifact:
    """A claim check, strictly typed."""
    try:
        return msgspec.convert(fields, Artifact)
    except msgspec.ValidationError as err:
        refuse(name, f"is no claim check of uri, sha256 and byte_size: {err}")


def _requested_output(entry: Any) -> RequestedOutput:
    fields = _map(entry, "an output")
    name = _name(fields, "an output")
    parameters = dict(_parameters(fields, f"output {name!r}"))
    binary = parameters.pop("binary_data", None)
    if binary is not None and not isinstance(binary, bool):
        raise InvalidInput(f"output {name!r}: binary_data must be true or false")
    return RequestedOutput(name, binary, parameters)


def _map(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be a map, not {type(value).__name__}")
    return value


def _entries(fields: dict[str, Any], key: str, *, required: bool = True) -> list[Any]:
    entries = fields.get(key)
    if entries is None and not required:
        return []
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
        raise InvalidInput(f"the request's {key} must be a list of up to {MAX_TENSORS}")
    return entries


def _name(fields: dict[str, Any], what: str) -> str:
    name = fields.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        raise InvalidInput(f"{what} needs a name: a string of up to {MAX_NAME_CHARS} characters")
    return name


def _parameters(fields: dict[str, Any], what: str) -> dict[str, Parameter]:
    parameters = fields.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict) or len(parameters) > MAX_PARAMETERS:
        raise InvalidInput(f"the parameters of {what} must be a map of up to {MAX_PARAMETERS}")
    for key, value in parameters.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float):
            raise InvalidInput(f"parameter {key!r} of {what} must be a string, a number or a boolean")
    return parameters
