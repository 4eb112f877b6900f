"""Large tensors, past this process: from a body into the artifact store as they arrive, from there into an answer.

In. Of a binary body the JSON header is read first. What it says is held against the model before more is read; then
the tensors are taken in their order, small ones kept, large ones sent on to the store (`arrived`). A body of any size
costs a few parts of `PART_BYTES`, which count among the bytes of all bodies. Other bodies are read as a whole, and
capped; what is too large for a record in them moves to the store afterwards (`portable`).

Out. What lies in the store is checked for being there, then sent on piece by piece, hashed on the way. A piece goes
out when the next one has come, the last when the digest was right: damage in a tensor of one piece is an error with a
status; in a longer one it shows when the status has gone out, and the connection is cut before the last piece. So
nobody ever gets a whole answer with wrong bytes. JSON has no pieces: there outputs are fetched, up to a bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from services.gateway import answers
from shared import claims, logs, oip
from shared.artifacts import PART_BYTES
from shared.errors import AiaasError, ArtifactNotFound, DigestMismatch, InvalidInput, TooLarge
from shared.tensors import check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from services.gateway.admission import Admission
    from services.gateway.settings import GatewaySettings
    from shared.artifacts import ArtifactStore
    from shared.oip import Announced, InferenceRequest
    from shared.results import Result
    from shared.tensors import Tensor

_PIECE_BYTES: Final = 2 * 1024 * 1024
"""Collected before it goes to the store: sockets give 64 KiB at a time, and each step costs a thread a wake-up."""
_STREAM_BYTES: Final = 3 * PART_BYTES + _PIECE_BYTES
"""What one body or answer on its way to or from the store holds: parts being filled and written, and a piece."""


# ------------------------------------------------------------------ in


def is_streamed(headers: Mapping[str, str], claim_bytes: int) -> bool:
    """Whether a body is binary, and may be longer than what one record carries."""
    media_type = headers.get("content-type", oip.JSON).partition(";")[0].strip().lower()
    if "inference-header-content-length" not in headers or media_type not in {oip.JSON, oip.BINARY}:
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
    take(kept_bytes + (_STREAM_BYTES if to_store else 0))
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
    given = [tensor for tensor in request.inputs if tensor.artifact is not None]
    for tensor in given:
        if tensor.artifact is not None:
            store.check_within(tensor.artifact)
    if given and sum(tensor.size_bytes for tensor in given) > settings.max_binary_body_bytes:
        raise TooLarge(f"the request's tensors have more than {settings.max_binary_body_bytes} bytes")
    to_store = claims.to_store({tensor.name: len(tensor.data) for tensor in request.inputs}, settings.claim_bytes)
    if not to_store:
        return request
    stored = [await claims.put(store, tensor) for tensor in request.inputs if tensor.name in to_store]
    return oip.with_inputs(request, map(claims.without_data, stored))


# ------------------------------------------------------------------ out


def in_store(result: Result) -> bool:
    """Whether outputs are in the store only: `answer` is for those, `answers.of_result` for all others."""
    return any(tensor.claimed for tensor in result.outputs)


async def answer(
    result: Result, request: InferenceRequest, store: ArtifactStore, settings: GatewaySettings, admission: Admission
) -> Response:
    """A result as the caller asked for it: what is wanted in the store stays there, binary is streamed, JSON fetched.

    Raises:
        TooLarge: more than `max_json_output_bytes` would have to be spelt out in JSON.
        Overloaded: too many bytes are held here already.
        StoreUnavailable: the store failed.
        InvalidInput: as `answers.of_result`.
    """
    absent = frozenset(tensor.name for tensor in result.outputs if tensor.claimed)
    wanted = absent - claims.asked_for(request, absent) if absent else absent
    if not wanted:
        return answers.of_result(result, request)
    binary = oip.binary_outputs(request, [tensor.name for tensor in result.outputs])
    with admission.body() as budget:
        try:
            fetched = await _fetched(result, wanted - binary, store, settings.max_json_output_bytes, budget.take)
        except (ArtifactNotFound, DigestMismatch) as err:
            return _lost(err)
        if not wanted & binary:
            return answers.of_result(fetched, request)
        return _Streamed(fetched, request, binary - (absent - wanted), store, admission)


async def _fetched(
    result: Result, names: frozenset[str], store: ArtifactStore, max_bytes: int, take: Callable[[int], None]
) -> Result:
    """The result with these outputs here, since JSON needs them whole."""
    size_bytes = sum(tensor.size_bytes for tensor in result.outputs if tensor.name in names)
    if size_bytes > max_bytes:
        raise TooLarge(
            f"request {result.id} is answered, but its outputs have {size_bytes} bytes, above the {max_bytes} that are "
            "spelt out in JSON: ask for them in binary (parameter binary_data_output, or binary_data of an output)"
        )
    take(size_bytes)
    outputs = [await claims.fetch(store, tensor) if tensor.name in names else tensor for tensor in result.outputs]
    return replace(result, outputs=tuple(outputs))


def _lost(err: AiaasError) -> Response:
    """A failure on the way to an output; that the store has lost it is nothing that the caller did."""
    response = answers.of_error(err)
    if isinstance(err, ArtifactNotFound | DigestMismatch):
        response.status_code = 500
    return response


class _Streamed(Response):
    """A binary answer of known length; of its tensors named in `binary` some are still in the store."""

    def __init__(
        self,
        result: Result,
        request: InferenceRequest,
        binary: frozenset[str],
        store: ArtifactStore,
        admission: Admission,
    ) -> None:
        self._tensors = [tensor for tensor in result.outputs if tensor.name in binary]
        self._store = store
        self._admission = admission
        self._header = oip.encode_response_header(
            model_name=result.model_name,
            model_version=result.model_version or 0,
            outputs=result.outputs,
            echo_id=request.id,
            binary=binary,
        )
        length = len(self._header) + sum(tensor.size_bytes for tensor in self._tensors)
        super().__init__(media_type=oip.BINARY)
        self.headers["inference-header-content-length"] = str(len(self._header))
        self.headers["content-length"] = str(length)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; what is wrong before the first byte is an error like any other, later the connection's end."""
        begun = False
        try:
            with self._admission.body() as budget:
                budget.take(_STREAM_BYTES)
                async for piece in self._pieces():
                    if not begun:
                        begun = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except AiaasError as err:
            logs.get().warning("an output could not be sent", code=err.code, error=err.message, cut=begun)
            if begun:
                return  # without the end: the server closes a connection that owes bytes
            response = _lost(err)
            self.status_code = response.status_code
            response.headers["x-request-id"] = self.headers["x-request-id"]
            await response(scope, receive, send)

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Header and tensors; the header comes with the first bytes behind it, so that these may fail before it."""
        for tensor in self._tensors:
            if tensor.artifact is not None and tensor.claimed:
                await self._store.check_there(tensor.artifact)
        before = self._header
        for tensor in self._tensors:
            async for piece in _trusted(self._store, tensor):
                yield before + piece
                before = b""
        if before:
            yield before


async def _trusted(store: ArtifactStore, tensor: Tensor) -> AsyncIterator[bytes]:
    """The tensor's bytes; one piece is always held back, so the last comes only when the digest was right."""
    if tensor.artifact is None or not tensor.claimed:
        yield bytes(tensor.data)
        return
    held_back = b""
    async for piece in store.stream(tensor.artifact):
        if held_back:
            yield held_back
        held_back = bytes(piece)
    yield held_back
