"""The declared steps of one version, ready to run: built once from the declaration and what it names in the store.

`prepare` turns a request that sends what a step takes into one that sends what the model takes. It computes for as long
as decoding and tokenizing take: call it in a thread. What comes out is an ordinary request, held against the model's
own signature by whoever queues it. `finish` computes the steps behind the model for a whole batch.

Not here: when either is called, and how many at a time.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from services.worker.processing import scores
from shared import processed_signature, processing
from shared.artifacts import Artifact
from shared.errors import RunTimeout, TooLarge
from shared.processing import DecodeImage, L2Normalize, Labels, MeanPool, Softmax, Tokenize, TopK
from shared.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from shared.artifacts import ArtifactStore
    from shared.oip import InferenceRequest
    from shared.processing import PostStep, PreStep, Processing
    from shared.tensors import Array, Tensor

MAX_PREPARED_BYTES: Final = 128 * 1024 * 1024
"""Tensors of one prepared request."""


class Processor:
    """Build it with `load`.

    Attributes:
        sha256: the declaration's digest, for receipts.
        signature: the model's own inputs, and all outputs that there are after `finish`.
        defaults: the names of the outputs that a request gets if it names none.
    """

    def __init__(self, declared: Processing, own: Signature, contents: Mapping[str, bytes]) -> None:
        """`contents` are the bytes of the declaration's artifacts, by digest. Slow: call it in a thread.

        Raises:
            InvalidInput: the declaration does not fit the model, or a file of labels is none.
            ModelNotReady: a tokenizer does not load.
        """
        processed_signature.check(declared, own)
        self.sha256 = processing.sha256(declared)
        self.signature = Signature(inputs=own.inputs, outputs=processed_signature.all_outputs(declared, own))
        self.defaults = tuple(spec.name for spec in processed_signature.default_outputs(declared, own))
        self._declared = declared
        self._own = own
        datatypes = {spec.name: spec.datatype for spec in own.inputs}
        self._encoders = {step.input: _encoder(step, datatypes, contents) for step in declared.preprocessing}
        self._labels = {
            step.into: _labels(step, contents) for step in declared.postprocessing if isinstance(step, Labels)
        }

    @classmethod
    async def load(cls, declared: Processing, own: Signature, store: ArtifactStore) -> Processor:
        """Fetch what the declaration names, and build.

        Raises:
            InvalidInput, ModelNotReady: as above.
            ArtifactNotFound, DigestMismatch, StoreUnavailable: the store does not have it.
        """
        processed_signature.check(declared, own)  # which bounds what is fetched
        contents = {artifact.sha256: await store.get_bytes(artifact) for artifact in declared.artifacts}
        return await asyncio.to_thread(cls, declared, own, contents)

    def validate(self, request: InferenceRequest) -> None:
        """Raise `InvalidInput` if the request is none that `prepare` or the model takes."""
        processed_signature.validate(request, self._own, self._declared)

    def is_due(self, request: InferenceRequest) -> bool:
        """Whether the request has to be prepared before it can be queued."""
        return processed_signature.wants_preprocessing(request, self._declared)

    def prepare(self, request: InferenceRequest, timeout_s: float) -> InferenceRequest:
        """The request with the model's own inputs, and the outputs that it gets named.

        Raises:
            InvalidInput: an element that can't be decoded, is too large, or has too much in it; it is named.
            ExecutionFailed: a tokenizer failed.
            TooLarge: too many bytes came out.
            RunTimeout: it took longer than `timeout_s`, up to one element more.
        """
        check_time = _alarm(timeout_s)
        given = {tensor.name: tensor for tensor in request.inputs}
        for step in self._declared.preprocessing:
            if step.input in given:
                filled = self._encoders[step.input](given.pop(step.input), check_time)
                given |= {tensor.name: tensor for tensor in filled}
        inputs = tuple(given[spec.name] for spec in self._own.inputs)
        if (size_bytes := sum(len(tensor.data) for tensor in inputs)) > MAX_PREPARED_BYTES:
            raise TooLarge(f"the request's inputs make {size_bytes} bytes of tensors, above {MAX_PREPARED_BYTES}")
        return replace(request, inputs=inputs)

    def finish(self, outputs: Sequence[Array], feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs in the order of `signature`, for the model's own `outputs` of a run on `feeds`.

        Raises:
            ExecutionFailed: the model gave something that a step can't take.
        """
        known = dict(zip((spec.name for spec in self._own.outputs), outputs, strict=True))
        for step in self._declared.postprocessing:
            known |= self._finish(step, known, feeds)
        return [known[spec.name] for spec in self.signature.outputs]

    def _finish(self, step: PostStep, known: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Array]:
        match step:
            case Softmax():
                return {step.into: scores.softmax(known[step.output], step.axis)}
            case TopK():
                values, indices = scores.top_k(known[step.output], step.k)
                return {step.values: values, step.indices: indices}
            case Labels():
                return {step.into: scores.names(known[step.indices], self._labels[step.into])}
            case MeanPool():
                return {step.into: scores.mean_pool(known[step.output], feeds[step.mask])}
            case L2Normalize():
                return {step.into: scores.l2_normalize(known[step.output])}


def _encoder(
    step: PreStep, datatypes: Mapping[str, str], contents: Mapping[str, bytes]
) -> Callable[[Tensor, Callable[[], None]], list[Tensor]]:
    # Imported where they are needed: most workers have no use for one of the libraries behind them, or for either.
    match step:
        case Tokenize():
            from services.worker.processing.text import TextEncoder  # noqa: PLC0415 - see above

            return TextEncoder(step, contents[step.tokenizer.sha256], datatypes).encode
        case DecodeImage():
            from services.worker.processing.images import ImageDecoder  # noqa: PLC0415 - see above

            return ImageDecoder(step, datatypes).decode


def _labels(step: Labels, contents: Mapping[str, bytes]) -> npt.NDArray[np.object_]:
    """The labels as BYTES elements."""
    lines = step.labels
    if isinstance(lines, Artifact):
        lines = processing.parse_labels(contents[lines.sha256])
    labels = np.empty(len(lines), dtype=object)
    labels[:] = [line.encode() for line in lines]
    return labels


def _alarm(timeout_s: float) -> Callable[[], None]:
    """A check that raises once the time is over."""
    until_s = time.monotonic() + timeout_s

    def check_time() -> None:
        if time.monotonic() > until_s:
            raise RunTimeout(f"preprocessing took longer than {timeout_s:g} s")

    return check_time
