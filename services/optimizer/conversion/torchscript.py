"""TorchScript, from the archive that `script_archive` made of the upload: looked at as graphs before it is run."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, Final

import torch

from services.optimizer.conversion.exporting import exporting, flat, from_script
from services.optimizer.conversion.source import NotConvertible, first_line
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.optimizer.conversion.script_archive import Input, Takes
    from services.optimizer.conversion.source import Source

_MAX_ELEMENTS: Final = 1 << 28
_OPERATORS: Final = re.compile(r"(aten|prim)::\w+")
_NEVER: Final = frozenset({"aten::save", "aten::load", "aten::from_file", "aten::_from_file", "prim::PythonOp"})
_BATCH, _ROWS, _OTHER_EXAMPLE = "batch", 2, 16
_DTYPES: Final = {
    "FP64": torch.float64,
    "FP32": torch.float32,
    "FP16": torch.float16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT16": torch.int16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


def convert(clean: bytes, config: Takes, threads: int) -> Source:
    """The script, vetted, with what it takes.

    Raises:
        Rejection: it does more than compute, or is not as `config` says.
        NotConvertible: torch does not load or export it.
    """
    torch.set_num_threads(threads)
    with exporting():
        module: Any = torch.jit.load(io.BytesIO(clean), map_location="cpu").eval()  # type: ignore[no-untyped-call] # torch has it untyped
    _check_operators(module)
    for name in filter(None, config.module.split(".")):
        if name not in dict(module.named_children()):
            raise Rejection("invalid_bundle", f"The script has no part {config.module[:100]!r}")
        module = getattr(module, name)
    example = {each.name: _example(each, config.sizes) for each in config.inputs}
    dims = {
        each.name: {axis: dim for axis, dim in enumerate(each.shape) if isinstance(dim, str)} for each in config.inputs
    }
    names, free = _outputs(module, config, example)
    return from_script(module, example, dims | free, names, "TorchScript")


def _check_operators(module: Any) -> None:
    """Every operator of every method of every part, before any is run."""
    for part in module.modules():
        script = part._c  # noqa: SLF001 - torch shows the methods of a loaded part nowhere else
        for name in script._method_names():  # noqa: SLF001 - as above
            for kind in _kinds(script._get_method(name).graph):  # noqa: SLF001 - as above
                if not _OPERATORS.fullmatch(kind) or kind in _NEVER:
                    raise Rejection("unsafe_model", f"The script calls {kind[:100]!r}")


def _kinds(graph: Any) -> Iterator[str]:
    pending = list(graph.nodes())
    while pending:
        node = pending.pop()
        yield node.kind()
        for block in node.blocks():
            pending += list(block.nodes())


def _example(about: Input, sizes: dict[str, int]) -> torch.Tensor:
    shape = [
        dim if isinstance(dim, int) else sizes.get(dim, _ROWS if axis == 0 or dim == _BATCH else _OTHER_EXAMPLE)
        for axis, dim in enumerate(about.shape)
    ]
    elements = 1
    for dim in shape:
        elements *= dim
    if elements > _MAX_ELEMENTS:
        raise Rejection("invalid_bundle", f"config.json: input {about.name!r} has {elements} numbers")
    dtype = _DTYPES[about.datatype]
    return torch.rand(shape, dtype=dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)


@torch.no_grad()
def _outputs(
    module: Any, config: Takes, example: dict[str, torch.Tensor]
) -> tuple[list[str], dict[str, dict[int, str]]]:
    """Names of the outputs, and of their free axes: those that are longer where the inputs are.

    Raises:
        NotConvertible: it does not run on such inputs, or does not answer with tensors.
    """
    try:
        shapes = _shapes(module(*example.values()))
    except Exception as err:  # whatever the script raises
        raise NotConvertible(f"It does not run on the inputs of config.json: {first_line(err)}") from err
    if config.outputs and len(config.outputs) != len(shapes):
        raise Rejection(
            "invalid_bundle", f"config.json names {len(config.outputs)} outputs, the script has {len(shapes)}"
        )
    numbered = ["output"] if len(shapes) == 1 else [f"output_{index}" for index in range(len(shapes))]
    names = list(config.outputs) or numbered
    free: dict[str, dict[int, str]] = {name: {} for name in names}
    for dim in {dim for each in config.inputs for dim in each.shape if isinstance(dim, str)}:
        sizes = config.sizes | {dim: _longer(config, dim)}
        try:
            longer = _shapes(module(*(_example(each, sizes) for each in config.inputs)))
        except Exception:  # noqa: BLE001, S112 - of that dimension only the one size runs: nothing is free by it
            continue
        for name, before, after in zip(names, shapes, longer, strict=True):
            for axis, (short, long) in enumerate(zip(before, after, strict=False)):
                if short != long:
                    free[name][axis] = dim if long == sizes[dim] else f"{name}_{axis}"
    return names, free


def _longer(config: Takes, dim: str) -> int:
    """Another size of a dimension than the example's."""
    axes = [each.shape.index(dim) for each in config.inputs if dim in each.shape]
    return config.sizes.get(dim, _ROWS if 0 in axes or dim == _BATCH else _OTHER_EXAMPLE) + 1


def _shapes(answer: Any) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in flat(answer)]
