"""Files beside the models: tokenizers, labels, declarations of processing, tensors too large for a record.

An asset is an artifact that a caller put into the store; nothing is written to the log. What names it later says where
it lies and which bytes it is, and whoever uses it holds it against that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import processing
from shared.errors import InvalidInput

if TYPE_CHECKING:
    from shared.artifacts import ArtifactStore
    from shared.processing import Processing


async def processing_of(store: ArtifactStore, sha256: str) -> Processing:
    """The declaration that lies in the store under a digest, if all that it names is there.

    Raises:
        InvalidInput: it is none; the sentence says where.
        ArtifactNotFound, DigestMismatch: it, or something that it names, is not there or damaged.
        StoreUnavailable: the store failed.
    """
    artifact = await store.named(sha256)
    if artifact.byte_size > processing.MAX_DECLARATION_BYTES:
        raise InvalidInput(f"a processing declaration has up to {processing.MAX_DECLARATION_BYTES} bytes")
    declared = processing.parse(await store.get_bytes(artifact))
    for named in declared.artifacts:
        await store.check_there(named)
    return declared
