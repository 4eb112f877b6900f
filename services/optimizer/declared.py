"""The steps around a model that its uploader declared: whether they fit it, and the files that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.optimizer.messages import tokenizer_file
from services.optimizer.rejections import Rejection
from shared import processed_signature
from shared.artifacts import Artifact
from shared.errors import CallerError
from shared.processing import MAX_TOKENIZER_BYTES, Labels, Tokenize, parse_labels

if TYPE_CHECKING:
    from services.optimizer.workspace import Workspace
    from shared.artifacts import ArtifactStore
    from shared.registry import Version
    from shared.signature import Signature


async def fetch_tokenizers(space: Workspace, version: Version) -> int:
    """The files of tokenize steps, beside the upload; how many.

    Raises:
        Rejection: one is too large, or not there.
    """
    processing = version.processing
    steps = processing.preprocessing if processing is not None else ()
    held = [step.tokenizer for step in steps if isinstance(step, Tokenize)]
    for index, artifact in enumerate(held):
        if artifact.byte_size > MAX_TOKENIZER_BYTES:
            raise Rejection("tokenizer_unusable", f"The tokenizer has {artifact.byte_size} bytes")
        await space.fetch(artifact, tokenizer_file(index))
    return len(held)


async def check(store: ArtifactStore, version: Version, signature: Signature | None) -> None:
    """Look whether the declared steps fit the model, and whether files of labels are such files.

    Raises:
        Rejection: they don't, or aren't.
    """
    processing = version.processing
    if processing is None or signature is None:
        return
    try:
        processed_signature.check(processing, signature)
        for step in processing.postprocessing:
            if isinstance(step, Labels) and isinstance(step.labels, Artifact):
                parse_labels(await store.get_bytes(step.labels))
    except CallerError as err:
        raise Rejection("processing_mismatch", err.message) from err
