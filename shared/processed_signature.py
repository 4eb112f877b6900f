"""What callers see of a model that has steps before or after it.

`check` says whether a declaration fits a model's own signature; everything else here takes that for granted.
`public_signature` is what a caller is shown: the steps' inputs in the place of those they fill, and the outputs at the
end of the chain. `validate` holds a request against what may really be sent, which is more: the model's own input in
place of any step's, and every output by name.

A step's rows are the model's rows: its input has one element a row, and a postprocessing step keeps the batch axis of
what it takes. So requests with text are batched across requests exactly as those with tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from shared.artifacts import Artifact
from shared.errors import InvalidInput
from shared.processing import (
    MAX_LABELS_BYTES,
    MAX_TOKENIZER_BYTES,
    DecodeImage,
    L2Normalize,
    Labels,
    MeanPool,
    Softmax,
    Tokenize,
    TopK,
)
from shared.signature import Signature, TensorSpec, validate_inputs

if TYPE_CHECKING:
    from collections.abc import Collection

    from shared.oip import InferenceRequest
    from shared.processing import PostStep, PreStep, Processing
    from shared.signature import Dim

MAX_ROWS: Final = 1024
"""Texts or pictures in one request."""
_FLOATS: Final = frozenset({"FP16", "FP32", "FP64"})
_TOKENS: Final = frozenset({"INT32", "INT64"})
_MASKS: Final = frozenset({"INT32", "INT64", "BOOL", "FP32"})
_PIXELS: Final = frozenset({"FP16", "FP32", "FP64", "UINT8", "INT8", "INT32", "INT64"})
_INDICES: Final = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})


def check(processing: Processing, signature: Signature) -> None:
    """Return if the declaration fits a model that takes and gives `signature`.

    Raises:
        InvalidInput: a name that isn't there or is there already, or a tensor that a step can't fill or take.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    taken: set[str] = set()
    for step in processing.preprocessing:
        if step.input in inputs or step.input in taken:
            raise InvalidInput(f"{_kind(step)}: its input {step.input!r} is an input already: call it otherwise")
        taken.add(step.input)
        for name in step.fills:
            if name not in inputs:
                raise InvalidInput(f"{_kind(step)}: the model has no input {name!r}; it takes {sorted(inputs)}")
            if name in taken:
                raise InvalidInput(f"{_kind(step)}: input {name!r} is filled twice")
            taken.add(name)
        _check_filled(step, inputs)
    all_outputs(processing, signature)


def all_outputs(processing: Processing, signature: Signature) -> tuple[TensorSpec, ...]:
    """The model's outputs, and behind them those of the steps, in order: all that can be asked for by name."""
    outputs = {spec.name: spec for spec in signature.outputs}
    for step in processing.postprocessing:
        for spec in _derive(step, outputs, signature):
            if spec.name in outputs:
                raise InvalidInput(f"{_kind(step)}: there is an output {spec.name!r} already")
            outputs[spec.name] = spec
    return tuple(outputs.values())


def default_outputs(processing: Processing, signature: Signature) -> tuple[TensorSpec, ...]:
    """What is answered if nothing is asked for by name: what the steps give and no further step takes."""
    if not processing.postprocessing:
        return signature.outputs
    own = {spec.name for spec in signature.outputs}
    consumed = {_source(step) for step in processing.postprocessing}
    return tuple(
        spec for spec in all_outputs(processing, signature) if spec.name not in own and spec.name not in consumed
    )


def public_signature(processing: Processing, signature: Signature) -> Signature:
    """The model as a caller sees it."""
    names = {step.input for step in processing.preprocessing}
    return Signature(inputs=_inputs(processing, signature, names), outputs=default_outputs(processing, signature))


def wants_preprocessing(request: InferenceRequest, processing: Processing) -> bool:
    """Whether the request sends what a step takes."""
    return not {step.input for step in processing.preprocessing}.isdisjoint(t.name for t in request.inputs)


def validate(request: InferenceRequest, signature: Signature, processing: Processing | None) -> None:
    """Check that the request is one that the model with its steps can run; `signature` is the model's own.

    Raises:
        InvalidInput: as `validate_inputs`, or too many rows for a step.
    """
    if processing is None:
        validate_inputs(request, signature)
        return
    given = {tensor.name for tensor in request.inputs}
    steps = {step.input for step in processing.preprocessing if step.input in given or given.isdisjoint(step.fills)}
    accepted = Signature(inputs=_inputs(processing, signature, steps), outputs=all_outputs(processing, signature))
    validate_inputs(request, accepted)
    for tensor in request.inputs:
        if tensor.name in steps and tensor.shape[0] > MAX_ROWS:
            raise InvalidInput(f"input {tensor.name!r} has {tensor.shape[0]} elements, above {MAX_ROWS}")


def _inputs(processing: Processing, signature: Signature, names: Collection[str]) -> tuple[TensorSpec, ...]:
    """The model's inputs with each step of `names` in the place of the first one that it fills."""
    steps = {step.fills: step for step in processing.preprocessing if step.input in names}
    filled = {name: step for fills, step in steps.items() for name in fills}
    inputs: dict[str, TensorSpec] = {}
    for spec in signature.inputs:
        step = filled.get(spec.name)
        if step is None:
            inputs[spec.name] = spec
        else:
            axis = None if spec.batch_axis is None else 0
            inputs.setdefault(
                step.input, TensorSpec(name=step.input, datatype="BYTES", shape=spec.shape[:1], batch_axis=axis)
            )
    return tuple(inputs.values())


# --------------------------------------------------------------------------- before the model


def _check_filled(step: PreStep, inputs: dict[str, TensorSpec]) -> None:
    match step:
        case Tokenize():
            if step.tokenizer.byte_size > MAX_TOKENIZER_BYTES:
                raise InvalidInput(f"tokenize: the tokenizer has more than {MAX_TOKENIZER_BYTES} bytes")
            _check_tokens(step, inputs)
        case DecodeImage():
            spec = inputs[step.output]
            _require(step, spec, _PIXELS, 1 + len(step.row_shape))
            for size, expected in zip(step.row_shape, spec.shape[1:], strict=True):
                if isinstance(expected, int) and expected not in {size, -1}:
                    raise InvalidInput(
                        f"decode_image: gives rows of {list(step.row_shape)}, but {spec.name!r} is {list(spec.shape)}"
                    )


def _check_tokens(step: Tokenize, inputs: dict[str, TensorSpec]) -> None:
    for name in step.fills:
        spec = inputs[name]
        _require(step, spec, _MASKS if name == step.mask else _TOKENS, 2)
        length = spec.shape[1]
        if isinstance(length, int) and length >= 0 and (step.padding, step.max_length) != ("max_length", length):
            raise InvalidInput(
                f"tokenize: {name!r} takes exactly {length} tokens: set padding to max_length and max_length to that"
            )
    if step.mask is None and step.padding == "longest":
        raise InvalidInput("tokenize: padding to the longest needs a mask; without one set padding to max_length")


def _require(step: PreStep, spec: TensorSpec, datatypes: Collection[str], rank: int) -> None:
    if spec.datatype not in datatypes:
        raise InvalidInput(f"{_kind(step)}: can't fill {spec.name!r} of {spec.datatype}, only {sorted(datatypes)}")
    if len(spec.shape) != rank:
        raise InvalidInput(f"{_kind(step)}: gives tensors of rank {rank}, but {spec.name!r} is {list(spec.shape)}")
    if spec.batch_axis not in {None, 0}:
        raise InvalidInput(f"{_kind(step)}: rows of {spec.name!r} lie along axis {spec.batch_axis}, not 0")


# --------------------------------------------------------------------------- after the model


def _derive(step: PostStep, outputs: dict[str, TensorSpec], signature: Signature) -> tuple[TensorSpec, ...]:
    """What a step gives, by what it takes."""
    spec = outputs.get(_source(step))
    if spec is None:
        raise InvalidInput(f"{_kind(step)}: there is no output {_source(step)!r}; there are {sorted(outputs)}")
    last = len(spec.shape) - 1
    match step:
        case Softmax():
            if not -len(spec.shape) <= step.axis <= last:
                raise InvalidInput(f"softmax: {spec.name!r} of shape {list(spec.shape)} has no axis {step.axis}")
            _along(step, spec, step.axis % len(spec.shape), _FLOATS)
            return (replace(spec, name=step.into),)
        case L2Normalize():
            _along(step, spec, last, _FLOATS)
            return (replace(spec, name=step.into),)
        case TopK():
            _along(step, spec, last, _FLOATS | _INDICES)
            shape = (*spec.shape[:-1], _at_most(step.k, spec.shape[-1]))
            return (
                replace(spec, name=step.values, shape=shape),
                replace(spec, name=step.indices, shape=shape, datatype="INT64"),
            )
        case Labels():
            if spec.datatype not in _INDICES:
                raise InvalidInput(f"labels: {spec.name!r} is of {spec.datatype}, not of integers")
            if isinstance(step.labels, Artifact) and step.labels.byte_size > MAX_LABELS_BYTES:
                raise InvalidInput(f"labels: the file has more than {MAX_LABELS_BYTES} bytes")
            return (replace(spec, name=step.into, datatype="BYTES"),)
        case MeanPool():
            return (_pooled(step, spec, signature),)


def _pooled(step: MeanPool, spec: TensorSpec, signature: Signature) -> TensorSpec:
    mask = next((each for each in signature.inputs if each.name == step.mask), None)
    if mask is None or len(mask.shape) != 2 or mask.datatype not in _MASKS:  # noqa: PLR2004 - rows and tokens
        raise InvalidInput(f"mean_pool: the model has no input {step.mask!r} of rank 2 that could be a mask")
    if len(spec.shape) != 3 or spec.datatype not in _FLOATS:  # noqa: PLR2004 - rows, tokens and numbers
        raise InvalidInput(
            f"mean_pool: {spec.name!r} of {spec.datatype} and {list(spec.shape)} is not [rows, tokens, n]"
        )
    if spec.batch_axis not in {None, 0}:
        raise InvalidInput(f"mean_pool: rows of {spec.name!r} lie along axis {spec.batch_axis}, not 0")
    return replace(spec, name=step.into, shape=(spec.shape[0], spec.shape[2]))


def _along(step: PostStep, spec: TensorSpec, axis: int, datatypes: Collection[str]) -> None:
    """Refuse a tensor that can't be reduced along an axis, or whose rows lie there."""
    if spec.datatype not in datatypes:
        raise InvalidInput(f"{_kind(step)}: {spec.name!r} is of {spec.datatype}, not of {sorted(datatypes)}")
    if axis < 0 or axis == spec.batch_axis:
        raise InvalidInput(f"{_kind(step)}: {spec.name!r} of shape {list(spec.shape)} has no axis for it within a row")


def _at_most(k: int, size: Dim) -> Dim:
    return min(k, size) if isinstance(size, int) and size >= 0 else -1


def _source(step: PostStep) -> str:
    """The output that a step takes."""
    return step.indices if isinstance(step, Labels) else step.output


def _kind(step: PreStep | PostStep) -> str:
    return str(step.__struct_config__.tag)
