"""What requests and answers of the Open Inference Protocol look like, as types that documents make schemas from.

Nothing decodes by these: `shared.oip` does that, by hand, for speed and for errors that say where. Tests hold one
against the other. A field with `UNSET` may be absent; fields that nobody knows are ignored.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.artifacts import Artifact
from shared.oip import MAX_NAME_CHARS, MAX_PARAMETERS, MAX_TENSORS
from shared.tensors import Datatype

Parameter = str | int | float | bool
Parameters = Annotated[dict[str, Parameter], Meta(extra_json_schema={"maxProperties": MAX_PARAMETERS})]
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
Size = Annotated[int, Meta(ge=0)]
EchoId = Annotated[str, Meta(description="the caller's own; only echoed")]


class RequestedOutput(Struct):
    """An output that is asked for. Parameters: `binary_data`, `store_outputs`."""

    name: Name
    parameters: Parameters | UnsetType = UNSET


class InputTensor(Struct):
    """A tensor of a request. `data` is flat or nested, row-major; or a claim check of raw bytes in the store."""

    name: Name
    datatype: Datatype
    shape: list[Size]
    parameters: Parameters | UnsetType = UNSET
    data: list[Any] | Artifact | UnsetType = UNSET


class InferenceRequest(Struct):
    """Parameters: `timeout` (µs), `priority` (1 goes first), `binary_data_output`, `store_outputs`."""

    inputs: Annotated[list[InputTensor], Meta(max_length=MAX_TENSORS)]
    id: EchoId | UnsetType = UNSET
    parameters: Parameters | UnsetType = UNSET
    outputs: Annotated[list[RequestedOutput], Meta(max_length=MAX_TENSORS)] | UnsetType = UNSET


class PackedTensor(Struct):
    """The same in msgpack. `data` is raw little-endian row-major bytes, shown here in base64; a list; or a claim."""

    name: Name
    datatype: Datatype
    shape: list[Size]
    data: Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})] | list[Any] | Artifact
    parameters: Parameters | UnsetType = UNSET


class PackedRequest(Struct):
    """An inference request as a msgpack map."""

    inputs: Annotated[list[PackedTensor], Meta(max_length=MAX_TENSORS)]
    id: EchoId | UnsetType = UNSET
    parameters: Parameters | UnsetType = UNSET
    outputs: Annotated[list[RequestedOutput], Meta(max_length=MAX_TENSORS)] | UnsetType = UNSET


class OutputTensor(Struct):
    """A tensor of an answer; one in the artifact store has `uri`, `sha256` and `byte_size` among its parameters."""

    name: str
    datatype: Datatype
    shape: list[Size]
    parameters: Parameters | UnsetType = UNSET
    data: list[Any] | UnsetType = UNSET


class InferenceResponse(Struct):
    """The outputs, and the version that computed them."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | UnsetType = UNSET
