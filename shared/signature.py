"""What a model takes and gives, and whether a request fits it.

The optimizer reads a `Signature` from the model and finds each tensor's batch axis by experiment; it travels in
`VariantReady`. The gateway holds requests against it before anything is enqueued, and the worker again, since anyone
may write to a request topic. A signature says nothing of how requests are grouped into batches; the worker decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from shared.errors import InvalidInput, Unsupported
from shared.tensors import MAX_RANK, Datatype, Tensor, refuse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shared.oip import InferenceRequest

_NOT_HERE: Final = frozenset({"classification", "shared_memory_region"})
"""Parameters of a requested output by which Triton's clients ask for something else than the tensor in the answer."""
Dim = Annotated[int, Meta(ge=-1)] | Annotated[str, Meta(min_length=1)]
"""A fixed size, -1 for a free one, or a free one's name, which stands for one size within a request."""


class TensorSpec(Struct, frozen=True, kw_only=True):
    """One input or output. `batch_axis` is the axis along which rows are independent; None: there is none.

    Raises:
        ValueError: the batch axis is none of the shape's.
    """

    name: Annotated[str, Meta(min_length=1)]
    datatype: Datatype
    shape: Annotated[tuple[Dim, ...], Meta(max_length=MAX_RANK)]
    batch_axis: Annotated[int, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        if self.batch_axis is not None and self.batch_axis >= len(self.shape):
            raise ValueError(f"batch_axis {self.batch_axis} is not an axis of shape {list(self.shape)}")


class Signature(Struct, frozen=True, kw_only=True):
    """All inputs (every one required) and outputs of a model, in the model's order.

    Raises:
        ValueError: two inputs or two outputs have the same name.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for specs in (self.inputs, self.outputs):
            if len({spec.name for spec in specs}) != len(specs):
                raise ValueError("two inputs or two outputs have the same name")


def validate_inputs(request: InferenceRequest, signature: Signature) -> None:
    """Check that the request is one the model can run.

    Raises:
        InvalidInput: an input is unknown or missing, or its datatype, rank or a fixed dim differs; a named free dim
            has two sizes; inputs disagree on the number of rows; a requested output is unknown.
        Unsupported: an output is asked for in a way that is not here: answering it as usual would mislead.
    """
    given = {tensor.name: tensor for tensor in request.inputs}
    known = {spec.name for spec in signature.inputs}
    if unknown := given.keys() - known:
        raise InvalidInput(f"unknown input {min(unknown)!r}; the model takes {sorted(known)}")
    if missing := known - given.keys():
        raise InvalidInput(f"input {min(missing)!r} is missing")
    sizes: dict[str, int] = {}
    for spec in signature.inputs:
        _check_tensor(given[spec.name], spec, sizes)
    rows(request.inputs, signature)
    outputs = {spec.name for spec in signature.outputs}
    if unknown := {output.name for output in request.outputs} - outputs:
        raise InvalidInput(f"unknown output {min(unknown)!r}; the model gives {sorted(outputs)}")
    for output in request.outputs:
        if refused := _NOT_HERE.intersection(output.parameters):
            raise Unsupported(f"output {output.name!r}: {min(refused)} is not supported")


def rows(inputs: Iterable[Tensor], signature: Signature) -> int | None:
    """The number of rows of a request: its inputs' size along their batch axes, None if no input has one.

    An input without a batch axis beside others that have one (a sampling rate, say) belongs to every row.

    Raises:
        InvalidInput: the inputs disagree.
    """
    axes = {spec.name: spec.batch_axis for spec in signature.inputs if spec.batch_axis is not None}
    sizes = {tensor.name: tensor.shape[axes[tensor.name]] for tensor in inputs if tensor.name in axes}
    if len(set(sizes.values())) > 1:
        raise InvalidInput(f"inputs disagree on the number of rows: {sizes}")
    return next(iter(sizes.values()), None)


def _check_tensor(tensor: Tensor, spec: TensorSpec, sizes: dict[str, int]) -> None:
    """Hold one tensor against its spec; `sizes` collects what the named free dims stand for in this request."""
    if tensor.datatype != spec.datatype:
        refuse(tensor.name, f"has datatype {tensor.datatype}, expected {spec.datatype}")
    fits = len(tensor.shape) == len(spec.shape) and all(
        expected in (size, -1) or isinstance(expected, str)
        for size, expected in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        refuse(tensor.name, f"has shape {list(tensor.shape)}, expected {list(spec.shape)}")
    for size, expected in zip(tensor.shape, spec.shape, strict=True):
        if isinstance(expected, str) and sizes.setdefault(expected, size) != size:
            refuse(tensor.name, f"has {expected} = {size}, but it is {sizes[expected]} elsewhere in the request")
