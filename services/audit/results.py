"""Results of outcomes, from Redis, while they are there.

Redis keeps a result for its TTL. What is there under the id must be what the receipt's digest says: after the TTL an id
is free again, and may hold another request's result. Outputs in the artifact store have their digest in their claim
check; of several, one of them in the store, the digest of all is known only to who fetches them (see `digest_of`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from shared import claims
from shared.errors import TooLarge
from shared.tensors import output_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.audit.records import Gone
    from shared.artifacts import ArtifactStore
    from shared.outcome_events import Receipt
    from shared.replies import Replies
    from shared.results import Result

_AT_A_TIME: Final = 32
"""Each may have `claim_bytes`, 768 KiB by default…"""
_SMALL_BYTES: Final = 8 * 1024
_SMALL_AT_A_TIME: Final = 128
"""…but where those before were small, more are asked for at a time: a round trip costs as much as ten of them."""
_MOST_BYTES: Final = 64 * 1024 * 1024


async def results_of(
    replies: Replies, receipts: Sequence[Receipt], limit_bytes: int = _MOST_BYTES
) -> list[Result | Gone]:
    """The results of receipts, in their order, without the receipts in them.

    Raises:
        TooLarge: they are more than `limit_bytes`, and more than one.
        RepliesUnavailable: Redis did not answer.
    """
    found: list[Result | Gone] = []
    at_a_time = _AT_A_TIME
    while len(found) < len(receipts):
        some = receipts[len(found) : len(found) + at_a_time]
        stored = await replies.get([(receipt.model_name, receipt.request_id) for receipt in some])
        size_bytes = sum([len(tensor.data) for result in stored if result for tensor in result.outputs])
        limit_bytes -= size_bytes
        if limit_bytes < 0 and len(receipts) > 1:
            raise TooLarge("results are more than may be held together")
        found += [_checked(receipt, result) for receipt, result in zip(some, stored, strict=True)]
        at_a_time = _SMALL_AT_A_TIME if size_bytes <= len(some) * _SMALL_BYTES else _AT_A_TIME
    return found


def _checked(receipt: Receipt, result: Result | None) -> Result | Gone:
    if result is None:
        return "expired"
    if result.status != receipt.status or digest_is(result, receipt) is False:
        return "changed"
    if receipt.error_code is not None and (result.error or {}).get("code") != receipt.error_code:
        return "changed"  # an id that belongs to another request, which failed as well
    return structs.replace(result, receipt=None)


def digest_is(result: Result, receipt: Receipt) -> bool | None:
    """Whether the outputs are those of the receipt, by what is here; None if some have to be fetched to know."""
    if receipt.output_sha256 is None:
        return not result.outputs or receipt.status != "succeeded"
    if not any(tensor.claimed for tensor in result.outputs):
        return output_digest(result.outputs) == receipt.output_sha256
    if len(result.outputs) == 1 and result.outputs[0].artifact is not None:
        return result.outputs[0].artifact.sha256 == receipt.output_sha256
    return None


async def digest_of(result: Result, store: ArtifactStore) -> str:
    """The digest over all outputs; those in the store are fetched, one at a time.

    Raises:
        ArtifactNotFound, DigestMismatch, InvalidInput: an output is not what its claim check says, or not there.
        StoreUnavailable: the store failed.
    """
    outputs = [await claims.fetch(store, tensor) if tensor.claimed else tensor for tensor in result.outputs]
    return output_digest(outputs)
