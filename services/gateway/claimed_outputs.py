"""Large outputs on their way out: from the artifact store into an answer, past this process.

What an answer needs from the store is looked for first, then sent on piece by piece and hashed on the way. A piece goes
out when the next one has come, the last when the digest was right. So damage in a tensor of one piece is an error with
a status; in a longer one it shows when the status has gone out, and the connection is cut before the last piece. Nobody
ever gets a whole answer with wrong bytes. JSON has no pieces: there outputs are fetched, up to a bound. Outputs that
the caller wanted in the store (`store_outputs`) stay there, if they are large, and the answer names the objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace
from starlette.responses import Response

from services.gateway import answers
from shared import claims, logs, oip, oip_response
from shared.artifacts import PART_BYTES
from shared.errors import AiaasError, ArtifactNotFound, DigestMismatch, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive, Scope, Send

    from services.gateway.admission import Admission
    from services.gateway.settings import GatewaySettings
    from shared.artifacts import ArtifactStore
    from shared.oip import InferenceRequest
    from shared.results import Result
    from shared.tensors import Tensor

_SENT_BYTES: Final = 512 * 1024
"""Sent at a time: what a slow client has to take within the time that `edge` gives each step."""
_HELD_BYTES: Final = 3 * PART_BYTES
"""What one answer on its way from the store holds: a piece held back, one that comes, and one being sent."""


def any_in(result: Result) -> bool:
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
    wanted = absent - claims.asked_for(request, absent)
    if not wanted:
        return answers.of_result(result, request)
    binary = oip_response.binary_outputs(request, [tensor.name for tensor in result.outputs])
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
        self._header = oip_response.encode_header(
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
                budget.take(_HELD_BYTES)
                async for piece in self._pieces():
                    if not begun:
                        begun = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    for start in range(0, len(piece), _SENT_BYTES):
                        portion = piece[start : start + _SENT_BYTES]
                        await send({"type": "http.response.body", "body": portion, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except AiaasError as err:
            logs.get().warning("an output could not be sent", code=err.code, error=err.message, cut=begun)
            if begun:
                return  # without the end: the server closes a connection that owes bytes
            response = _lost(err)
            self.status_code = response.status_code
            response.headers["x-request-id"] = self.headers.get("x-request-id", "")
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
