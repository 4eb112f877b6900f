"""torch to ONNX by `torch.onnx.export`: modules and programs by way of torch.export, TorchScript by its graph.

Only what torch says to be no error of ours is caught, and all of it: exporters raise what they like, and each of it
means that this model does not convert. The settings are those of the canonical form, opset 20 and data inside.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from services.optimizer.conversion.canonical import OPSET, loaded
from services.optimizer.conversion.source import NotConvertible, Source, first_line
from services.optimizer.rejections import Rejection
from shared.signature import TensorSpec
from shared.tensors import MAX_RANK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from services.optimizer.sandbox.engine import Feeds
    from shared.signature import Dim
    from shared.tensors import Array, Datatype

DTYPES: Final[Mapping[Datatype, torch.dtype]] = {
    "FP64": torch.float64,
    "FP32": torch.float32,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT16": torch.int16,
    "INT8": torch.int8,
    "UINT64": torch.uint64,
    "UINT32": torch.uint32,
    "UINT16": torch.uint16,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


def from_module(
    module: torch.nn.Module,
    example: Mapping[str, Tensor],
    dims: Sequence[Mapping[int, str]],
    outputs: Sequence[str],
    how: str,
) -> Source:
    """A module that takes the example's tensors in their order; `dims` names the free axes of each.

    Raises:
        NotConvertible: torch does not export it.
    """
    shapes = tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for free in dims)
    inputs = tuple(torch.zeros(each.shape, dtype=each.dtype) for each in example.values())
    with exporting():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    source = from_program(program, list(example), outputs, how)
    _name(source.model, dims)
    return Source(source.model, source.how, runner(module, list(example)))


def from_program(program: Any, inputs: Sequence[str] | None, outputs: Sequence[str] | None, how: str) -> Source:
    """An exported program.

    Raises:
        NotConvertible: torch does not export it.
    """
    with exporting():
        made = torch.onnx.export(
            program,
            input_names=list(inputs) if inputs else None,
            output_names=list(outputs) if outputs else None,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
            optimize=True,
        )
    assert made is not None  # noqa: S101 - for the type checker: without a file it returns the program
    model = loaded(made.model_proto.SerializeToString())
    names = [value.name for value in model.graph.input]
    return Source(
        model, f"{how}; torch {torch.__version__}, torch.onnx.export (dynamo)", runner(program.module(), names)
    )


def from_script(
    module: Any,
    example: Mapping[str, Tensor],
    dims: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str] | None,
    how: str,
) -> Source:
    """A script module that takes the example's tensors in their order.

    Raises:
        NotConvertible: torch does not export it.
    """
    with TemporaryDirectory() as directory, exporting():
        path = Path(directory) / "script.onnx"
        torch.onnx.export(
            module,
            tuple(example.values()),
            path,
            input_names=list(example),
            output_names=list(outputs) if outputs else None,
            dynamic_axes={name: dict(axes) for name, axes in dims.items()},
            opset_version=OPSET,
            dynamo=False,
        )
        content = path.read_bytes()
    how = f"{how}; torch {torch.__version__}, torch.onnx.export (TorchScript)"
    return Source(loaded(content), how, runner(module, list(example)))


def runner(module: Any, names: Sequence[str]) -> Callable[[Feeds], list[Array]]:
    """What runs the module on arrays by name, and gives its outputs as arrays, one behind the other."""

    @torch.no_grad()
    def run(feeds: Feeds) -> list[Array]:
        given = [torch.from_numpy(np.array(feeds[name])) for name in names]
        return [each.numpy() for each in flat(module(*given))]

    return run


def flat(answer: Any) -> list[Tensor]:
    """The tensors of an answer in the order in which exporters number them."""
    if isinstance(answer, Tensor):
        return [answer.detach()]
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        return [tensor for each in answer for tensor in flat(each)]
    return [torch.as_tensor(answer)]


def _name(model: Any, dims: Sequence[Mapping[int, str]]) -> None:
    """Call the free axes of the inputs what they were named, and those of the outputs that are as long the same."""
    names: dict[str, str] = {}
    for value, free in zip(model.graph.input, dims, strict=True):
        for axis, name in free.items():
            dim = value.type.tensor_type.shape.dim[axis]
            names.setdefault(dim.dim_param, name)
            dim.dim_param = name
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def spec_of(name: str, tensor: Tensor, shape: Sequence[Dim]) -> TensorSpec:
    """A tensor as the protocol describes it.

    Raises:
        Rejection: it has no words for it.
    """
    datatype: Datatype | None = next((known for known, dtype in DTYPES.items() if dtype == tensor.dtype), None)
    if datatype is None:
        raise Rejection("unsupported_input", f"Tensor {name!r} has elements of type {tensor.dtype}")
    if len(shape) > MAX_RANK:
        raise Rejection("unsupported_input", f"Tensor {name!r} has rank {len(shape)}")
    return TensorSpec(name=name, datatype=datatype, shape=tuple(shape))


def _cause(err: BaseException) -> BaseException:
    """What exporters wrap in words of their own."""
    while err.__cause__ is not None:
        err = err.__cause__
    return err


@contextmanager
def exporting() -> Iterator[None]:
    """A place for torch's own code, which warns and raises as it likes."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MemoryError, NotConvertible):
        raise
    except Exception as err:
        raise NotConvertible(f"torch does not convert it: {first_line(_cause(err))}") from err
    finally:
        logging.disable(logging.NOTSET)
