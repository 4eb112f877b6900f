"""Claim checks: tensors that lie in the artifact store instead of in a record or a stored result.

The same both ways. What travels carries up to `inline_bytes` of tensors itself; above that the largest go to the store
until the rest fits (`to_store`), so a record stays small however many tensors it has, and small tensors never wait for
the store. `put` and `fetch` move one tensor; `patiently` is how long whoever waits for it bears a store that is away.

Who sets the parameter `store_outputs` of a request or of one of its outputs wants outputs in the store whatever their
size (`asked_for`): the answer names the object, and carries the data as well if it is small.

An artifact is named by the digest of its content: whoever knows the digest of something in the store, a model's file
too, can have a model read it, whichever tenant put it there. A digest can't be guessed, but it is no secret either: it
stands in responses and records. Tenants that must not share bytes need stores of their own.

Not here: deleting. Bytes may go only when no record and no outcome that is kept names them, which nobody who puts or
fetches one tensor can know.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec.structs import replace

from shared import logs
from shared.artifacts import PART_BYTES
from shared.errors import DigestMismatch, StoreUnavailable
from shared.tensors import check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping

    from shared.artifacts import Area, ArtifactStore
    from shared.oip import InferenceRequest
    from shared.tensors import Tensor

T = TypeVar("T")
PARAMETER: Final = "store_outputs"
_FIRST_WAIT_S: Final = 0.1
_MAX_WAIT_S: Final = 2.0


def to_store(sizes: Mapping[str, int], inline_bytes: int) -> frozenset[str]:
    """The names of the tensors that have to go to the store, the largest first, until the rest is `inline_bytes`."""
    rest_bytes = sum(sizes.values())
    names: set[str] = set()
    for name, size_bytes in sorted(sizes.items(), key=lambda item: item[1], reverse=True):
        if rest_bytes <= inline_bytes:
            break
        names.add(name)
        rest_bytes -= size_bytes
    return frozenset(names)


def asked_for(request: InferenceRequest, names: Collection[str]) -> frozenset[str]:
    """Which of the outputs in `names` are wanted in the store: by their own parameter, or else the request's."""
    default = request.parameters.get(PARAMETER) is True
    own = {
        output.name: output.parameters[PARAMETER] is True
        for output in request.outputs
        if PARAMETER in output.parameters
    }
    return frozenset(name for name in names if own.get(name, default))


def asks(request: InferenceRequest) -> bool:
    """Whether the caller may want any output in the store: a quick look, since hardly anyone does."""
    if PARAMETER in request.parameters:
        return True
    return bool(request.outputs) and any(PARAMETER in output.parameters for output in request.outputs)


async def put(store: ArtifactStore, tensor: Tensor, area: Area = "sha256") -> Tensor:
    """The tensor with its bytes in the store, too; they are read where they lie, not copied.

    Raises:
        StoreUnavailable: the store failed.
    """
    artifact = await store.put_stream(_pieces(tensor), limit_bytes=len(tensor.data), area=area)
    return replace(tensor, artifact=artifact)


async def fetch(store: ArtifactStore, tensor: Tensor) -> Tensor:
    """The tensor with its bytes here, checked; one that has them is returned as it is. Look at `size_bytes` first.

    Raises:
        InvalidInput: its claim check is of another place than this store, or its bytes are not what it says.
        ArtifactNotFound, DigestMismatch: nothing is there, or other bytes are.
        StoreUnavailable: the store failed.
    """
    if tensor.artifact is None or not tensor.claimed:
        return tensor
    try:
        data = await store.get_view(tensor.artifact)
    except DigestMismatch as err:  # which bytes are there is not for whoever guessed an address
        raise DigestMismatch(f"tensor {tensor.name!r}: the object is not the one of its claim check") from err
    fetched = replace(tensor, data=data)
    return await asyncio.to_thread(check, fetched)  # millions of strings may be in it


def without_data(tensor: Tensor) -> Tensor:
    """The tensor as a claim check alone."""
    return replace(tensor, data=b"") if tensor.artifact is not None else tensor


async def patiently(attempt: Callable[[], Awaitable[T]], wait_s: float) -> T:
    """Try until the store answers, for about `wait_s`, with a growing back-off.

    Raises:
        StoreUnavailable: it did not answer for all that time. Whatever else `attempt` raises passes through.
    """
    loop = asyncio.get_running_loop()
    give_up_s, pause_s = loop.time() + wait_s, _FIRST_WAIT_S
    while True:
        try:
            return await attempt()
        except StoreUnavailable as err:
            if loop.time() + pause_s > give_up_s:
                raise
            logs.get().warning("waiting", what="artifact store", error=err.message, retry_in_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _MAX_WAIT_S)


async def _pieces(tensor: Tensor) -> AsyncIterator[memoryview]:
    view = memoryview(tensor.data)
    for start in range(0, len(view), PART_BYTES):
        yield view[start : start + PART_BYTES]
