"""Which jobs run together, and how their tensors become one and are taken apart again.

Natural batching: whatever queued up while the previous batch ran, up to the variant's proved row cap and a byte
budget; no waiting at low load, full batches under load. Only jobs of one version and one *shape key* share a batch:
the same dims but for the batch axis, and the same bytes in inputs that have no batch axis (a sampling rate belongs to
every row). A job that has no rows, or more than the cap, runs alone, as does one that a worker died of.

Pure: no I/O, no clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from shared.signature import rows
from shared.tensors import Tensor, from_numpy, joined, to_numpy

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence

    from shared.oip import InferenceRequest
    from shared.registry import Variant
    from shared.signature import Signature, TensorSpec
    from shared.tensors import Array

ShapeKey = tuple["Hashable", ...]


def shape_key(request: InferenceRequest, signature: Signature) -> ShapeKey:
    """What must be equal for two requests to share a run of one variant."""
    given = {tensor.name: tensor for tensor in request.inputs}
    key: list[Hashable] = []
    for spec in signature.inputs:
        tensor = given[spec.name]
        shape = tensor.shape
        if spec.batch_axis is None:
            # One from the artifact store is large, and known by its digest.
            key.append((shape, tensor.artifact.sha256 if tensor.artifact is not None else bytes(tensor.data)))
        else:
            key.append((shape[: spec.batch_axis], shape[spec.batch_axis + 1 :]))
    return tuple(key)


def independent_rows(request: InferenceRequest, variant: Variant) -> int | None:
    """The request's rows, None where the variant's rows were not proved independent of one another."""
    if variant.row_cap == 1 or any(spec.batch_axis is None for spec in variant.signature.outputs):
        return None
    return rows(request.inputs, variant.signature)


def rows_alone(request: InferenceRequest, variant: Variant) -> int | None:
    """The request's rows, or None if it has to run alone."""
    count = independent_rows(request, variant)
    return count if count and count <= variant.row_cap else None


def concatenate(requests: Sequence[InferenceRequest], signature: Signature) -> dict[str, Array]:
    """The inputs of one run, by name, rows in the order of the requests."""
    given = [{tensor.name: tensor for tensor in request.inputs} for request in requests]
    feeds: dict[str, Array] = {}
    for spec in signature.inputs:
        tensors = [by_name[spec.name] for by_name in given]
        together = len(tensors) > 1 and spec.batch_axis is not None
        feeds[spec.name] = joined(tensors, spec.batch_axis or 0) if together else to_numpy(tensors[0])
    return feeds


def take_apart(outputs: Sequence[Array], counts: Sequence[int], signature: Signature) -> list[tuple[Tensor, ...]]:
    """The outputs of each request in signature order: `counts` rows each, along every output's batch axis."""
    pieces = [_pieces(spec, array, counts) for spec, array in zip(signature.outputs, outputs, strict=True)]
    return list(zip(*pieces, strict=True))


def _pieces(spec: TensorSpec, array: Array, counts: Sequence[int]) -> list[Tensor]:
    """One output of each request."""
    if len(counts) == 1:
        return [from_numpy(spec.name, array, spec.datatype)]
    if spec.batch_axis or spec.datatype == "BYTES":
        arrays = np.split(array, np.cumsum(counts)[:-1], axis=spec.batch_axis or 0)
        return [from_numpy(spec.name, piece, spec.datatype) for piece in arrays]
    # Rows lie one after the other: views of the one block of bytes.
    data, row = from_numpy(spec.name, array, spec.datatype).data, array.shape[1:]
    row_bytes = math.prod(row) * array.itemsize
    pieces, start = [], 0
    for count in counts:
        end = start + count * row_bytes
        pieces.append(Tensor(spec.name, spec.datatype, (count, *row), data[start:end]))
        start = end
    return pieces


def answer(
    request: InferenceRequest, outputs: tuple[Tensor, ...], defaults: Collection[str] = ()
) -> tuple[Tensor, ...]:
    """The outputs that the request asks for; if it names none, the `defaults`, which are all if there are none."""
    if not request.outputs and not defaults:
        return outputs
    asked = {output.name for output in request.outputs} or defaults
    return tuple(tensor for tensor in outputs if tensor.name in asked)
