"""Large tensors on their way in: from a body into the artifact store as they arrive, past this process.

Of a binary body the JSON header is read first. What it says is held against the model before more is read; then
the tensors are taken in their order, small ones kept, large ones sent on to the store (`arrived`). A body of any size
costs a few parts of `PART_BYTES`, which count among the bytes of all bodies. Other bodies are read as a whole, and
capped; what is too large for a record in them moves to the store afterwards (`portable`).

The way out is `claimed_outputs`; what lies where, and who may read it, stands in `shared.claims`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from shared import claims, oip
from shared.artifacts import PART_BYTES
from shared.errors import InvalidInput, TooLarge
from shared.tensors import check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from services.gateway.settings import GatewaySettings
    from shared.artifacts import ArtifactStore
    from shared.oip import Announced, InferenceRequest
    from shared.tensors import Tensor

_PIECE_BYTES: Final = 2 * 1024 * 1024
"""Collected before it goes to the store: sockets give 64 KiB at a time, and each step costs a thread a wake-up."""
_HELD_BYTES: Final = 3 * PART_BYTES + _PIECE_BYTES
"""What one body on its way to the store holds: parts being filled and written, and a piece."""


def is_streamed(headers: Mapping[str, str], claim_bytes: int) -> bool:
    """Whether a body is binary, and may be longer than what one record carries."""
    if "inference-header-content-length" not in headers:
        return False
    if headers.get("content-type", oip.JSON).partition(";")[0].strip().lower() not in {oip.JSON, oip.BINARY}:
        return False
    length = headers.get("content-length", "")
    return "content-encoding" in headers or not length.isdecimal() or int(length) > claim_bytes


async def arrived(
    body: Body, announced: Announced, store: ArtifactStore, settings: GatewaySettings, take: Callable[[int], None]
) -> InferenceRequest:
    """The request once its tensors are there, those that are too large for a record in the store.

    `take` is told of the bytes that will be held before they are.

    Raises:
        InvalidInput: the body does not end with the last tensor, or a tensor is not what it says.
        TooLarge: the tensors make the body longer than `max_binary_body_bytes`.
        StoreUnavailable: the store failed. What the body's pieces and `take` raise passes through.
    """
    if sum(announced.sizes.values()) > settings.max_binary_body_bytes:
        raise TooLarge(f"the tensors have more than {settings.max_binary_body_bytes} bytes")
    to_store = _to_store(announced, settings.claim_bytes)
    kept_bytes = sum(size for name, size in announced.sizes.items() if name not in to_store)
    take(kept_bytes + (_HELD_BYTES if to_store else 0))
    given = {tensor.name: tensor for tensor in announced.request.inputs}
    tensors = [
        await _stored(body, given[name], size, store) if name in to_store else await _kept(body, given[name], size)
        for name, size in announced.sizes.items()
    ]
    await body.finish()
    return oip.with_inputs(announced.request, tensors)


def _to_store(announced: Announced, claim_bytes: int) -> frozenset[str]:
    """Which tensors of the tail are too large; those that the header spells out count, but are not in the tail."""
    spelt_out = {tensor.name: len(tensor.data) for tensor in announced.request.inputs}
    return claims.to_store(spelt_out | announced.sizes, claim_bytes) & announced.sizes.keys()


async def _kept(body: Body, tensor: Tensor, size_bytes: int) -> Tensor:
    return check(replace(tensor, data=await body.read(size_bytes)))


async def _stored(body: Body, tensor: Tensor, size_bytes: int, store: ArtifactStore) -> Tensor:
    """Its bytes are checked by whoever fetches them: BYTES and BOOL can't be looked at in pieces."""
    return replace(tensor, artifact=await store.put_stream(body.pieces(size_bytes), limit_bytes=size_bytes))


class Body:
    """A body as it arrives, taken in portions of known sizes."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    async def header(self, size_bytes: int, limit_bytes: int) -> bytes:
        """The JSON header, which comes first.

        Raises:
            InvalidInput, TooLarge: its length is none, or above `limit_bytes`.
        """
        if size_bytes > limit_bytes:
            raise TooLarge(f"the JSON header has {size_bytes} bytes, above the limit of {limit_bytes}")
        if not size_bytes:
            raise InvalidInput("the header length 0 is not within the body")
        return await self.read(size_bytes)

    async def read(self, size_bytes: int) -> bytes:
        """The next bytes, together."""
        return b"".join([piece async for piece in self._next(size_bytes)])

    async def pieces(self, size_bytes: int) -> AsyncIterator[bytes]:
        """The next bytes in pieces that are worth a step each."""
        collected: list[memoryview] = []
        collected_bytes = 0
        async for piece in self._next(size_bytes):
            collected.append(piece)
            collected_bytes += len(piece)
            if collected_bytes >= _PIECE_BYTES:
                yield b"".join(collected)
                collected, collected_bytes = [], 0
        yield b"".join(collected)

    async def finish(self) -> None:
        """Refuse bytes that no tensor claimed."""
        beyond = bytes(self._rest) or await anext(self._chunks, b"")
        if beyond:
            raise InvalidInput("bytes follow the last binary tensor")

    async def _next(self, size_bytes: int) -> AsyncIterator[memoryview]:
        missing_bytes = size_bytes
        while missing_bytes:
            if not self._rest:
                self._rest = memoryview(await anext(self._chunks, b""))
                if not self._rest:
                    raise InvalidInput(f"the body ends {missing_bytes} bytes before its header, or a tensor, does")
            piece, self._rest = self._rest[:missing_bytes], self._rest[missing_bytes:]
            missing_bytes -= len(piece)
            yield piece


async def portable(request: InferenceRequest, store: ArtifactStore, settings: GatewaySettings) -> InferenceRequest:
    """The request as a record can carry it; most are as they are.

    Raises:
        InvalidInput: a claim check of the caller's own is of another place than the store.
        TooLarge: the caller's claim checks are of more than `max_binary_body_bytes`.
        StoreUnavailable: the store failed.
    """
    if not has_large(request, store, settings):
        return request
    to_store = claims.to_store({tensor.name: len(tensor.data) for tensor in request.inputs}, settings.claim_bytes)
    stored = [await claims.put(store, tensor) for tensor in request.inputs if tensor.name in to_store]
    return oip.with_inputs(request, map(claims.without_data, stored))


def has_large(request: InferenceRequest, store: ArtifactStore, settings: GatewaySettings) -> bool:
    """Whether the request has more tensors of its own than a record carries.

    Raises:
        InvalidInput, TooLarge: as `portable`.
    """
    here_bytes = there_bytes = 0
    for tensor in request.inputs:
        if tensor.artifact is None:
            here_bytes += len(tensor.data)
        else:
            store.check_within(tensor.artifact)
            there_bytes += tensor.artifact.byte_size
    if there_bytes > settings.max_binary_body_bytes:
        raise TooLarge(f"tensors of {there_bytes} bytes are above the limit of {settings.max_binary_body_bytes}")
    return here_bytes > settings.claim_bytes
