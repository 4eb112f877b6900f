"""The outputs of a recorded and of a replayed answer, with all their bytes here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import claims
from shared.errors import CallerError
from shared.tensors import Tensor, check, output_digest
from shared.tensors import claim as claimed

if TYPE_CHECKING:
    from services.audit.records import RecordedOutcome
    from shared.artifacts import ArtifactStore
    from shared.replay_events import ReplayedRow


async def recorded_outputs(outcome: RecordedOutcome, store: ArtifactStore) -> tuple[Tensor, ...] | None:
    """The recorded outputs; None if they are not there any more, or are not those of the receipt.

    Raises:
        StoreUnavailable: the store failed.
    """
    if isinstance(outcome.result, str):
        return None
    try:
        outputs = tuple([await claims.fetch(store, tensor) for tensor in outcome.result.outputs])
    except CallerError:  # gone from the store, or changed there
        return None
    return outputs if output_digest(outputs) == outcome.receipt.output_sha256 else None


async def replayed_outputs(row: ReplayedRow, store: ArtifactStore) -> tuple[Tensor, ...]:
    """The outputs that a worker sent.

    Raises:
        InvalidInput: they are not what they say.
        ArtifactNotFound, DigestMismatch, StoreUnavailable: what it stored is not there.
    """
    found = []
    for output in row.outputs:
        if output.artifact is not None:
            tensor = claimed(output.name, output.datatype, output.shape, output.artifact)
            found.append(await claims.fetch(store, tensor))
        else:
            found.append(check(Tensor(output.name, output.datatype, output.shape, output.data)))
    return tuple(found)
