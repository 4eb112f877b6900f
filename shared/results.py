"""The answer to a request, as it lies in Redis for whoever asked.

Outputs that are large, or that the caller wanted there, lie in the artifact store: of these it has the claim check
under `artifact`, and `data` only if it is small. So an answer stays below 1 MB whatever a model gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shared.artifacts import Artifact
from shared.errors import InvalidInput
from shared.outcome_events import Status
from shared.tensors import Tensor


class Result(msgspec.Struct, frozen=True, gc=False):
    """The answer to a request as it lies in Redis; `error` is `{code, message}`, `receipt` the encoded receipt or None.

    A cancel or a gateway's expiry has no receipt yet: the worker makes it when it meets the record.
    """

    id: str
    status: Status
    model_name: str
    model_version: int | None = None
    outputs: tuple[Tensor, ...] = ()
    error: Mapping[str, str] | None = None
    receipt: bytes | None = None

    def encode(self) -> bytes:
        """The stored bytes: a msgpack map in which the receipt is a map, too."""
        return _ENCODER.encode(
            {
                "id": self.id,
                "status": self.status,
                "model_name": self.model_name,
                "model_version": self.model_version,
                "outputs": [_without_data(tensor) if tensor.claimed else tensor for tensor in self.outputs],
                "error": self.error,
                "receipt": None if self.receipt is None else msgspec.Raw(self.receipt),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Result:
        """The inverse of `encode`. Fields that it does not know are a newer writer's, and are left out.

        Raises:
            InvalidInput: the bytes are no result. In Redis, which is ours, that is a bug.
        """
        try:
            stored = _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as err:
            raise InvalidInput(f"not a result: {err}") from err
        return cls(
            id=stored.id,
            status=stored.status,
            model_name=stored.model_name,
            model_version=stored.model_version,
            outputs=tuple(Tensor(t.name, t.datatype, t.shape, t.data, t.artifact) for t in stored.outputs),
            error=stored.error,
            receipt=None if (receipt := bytes(stored.receipt)) == _NIL else receipt,
        )


def _without_data(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "artifact": tensor.artifact}


class _StoredTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes = b""
    artifact: Artifact | None = None


class _StoredResult(msgspec.Struct):
    id: str
    status: Status
    model_name: str
    model_version: int | None
    outputs: tuple[_StoredTensor, ...]
    error: dict[str, str] | None
    receipt: msgspec.Raw


_NIL: Final = b"\xc0"
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_StoredResult)
