"""TorchScript, from the archive that `script_archive` made of the upload: looked at as graphs before it is run."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, Final

import torch

from services.optimizer.conversion.exporting import DTYPES, exporting, flat, from_script, spec_of
from services.optimizer.conversion.source import NotConvertible, first_line
from services.optimizer.rejections import Rejection
from shared.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.optimizer.conversion.script_archive import Input, Takes
    from services.optimizer.conversion.source import Source

_MAX_ELEMENTS: Final = 1 << 28
_OPERATORS: Final = re.compile(r"(aten|prim)::\w+")
_NEVER: Final = frozenset({"aten::save", "aten::load", "aten::from_file", "aten::_from_file", "prim::PythonOp"})
_BATCH, _ROWS, _OTHER_EXAMPLE = "batch", 2, 16


class Script:
    """A script, vetted and loaded, with what it takes."""

    def __init__(self, clean: bytes, config: Takes, threads: int) -> None:
        """Load.

        Raises:
            Rejection: it does more than compute, or is not as `config` says.
            NotConvertible: torch does not load it, or it does not run on the inputs that `config` names.
        """
        self.content = clean
        self._config = config
        torch.set_num_threads(threads)
        with exporting():
            module: Any = torch.jit.load(io.BytesIO(clean), map_location="cpu").eval()  # type: ignore[no-untyped-call] # torch has it untyped
        _check_operators(module)
        for name in filter(None, config.module.split(".")):
            if name not in dict(module.named_children()):
                raise Rejection("invalid_bundle", f"The script has no part {config.module[:100]!r}")
            module = getattr(module, name)
        self.module = module
        self._example = {each.name: _example(each, config.sizes) for each in config.inputs}
        self._answer, self._free = _outputs(module, config, self._example)

    def source(self) -> Source:
        """See `Loaded`."""
        dims = {
            each.name: {axis: dim for axis, dim in enumerate(each.shape) if isinstance(dim, str)}
            for each in self._config.inputs
        }
        return from_script(self.module, self._example, dims | self._free, list(self._answer), "TorchScript")

    def signature(self) -> Signature:
        """Inputs as `config.json` says, outputs as they came out."""
        inputs = (TensorSpec(name=each.name, datatype=each.datatype, shape=each.shape) for each in self._config.inputs)
        outputs = (
            spec_of(name, tensor, [self._free[name].get(axis, size) for axis, size in enumerate(tensor.shape)])
            for name, tensor in self._answer.items()
        )
        return Signature(inputs=tuple(inputs), outputs=tuple(outputs))


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
    dtype = DTYPES[about.datatype]
    return torch.rand(shape, dtype=dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)


@torch.no_grad()
def _outputs(
    module: Any, config: Takes, example: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """The outputs by name, and the names of their free axes: those that are longer where the inputs are.

    Raises:
        NotConvertible: it does not run on such inputs, or does not answer with tensors.
    """
    try:
        answer = flat(module(*example.values()))
    except Exception as err:  # whatever the script raises
        raise NotConvertible(f"It does not run on the inputs of config.json: {first_line(err)}") from err
    if config.outputs and len(config.outputs) != len(answer):
        raise Rejection(
            "invalid_bundle", f"config.json names {len(config.outputs)} outputs, the script has {len(answer)}"
        )
    shapes = [tuple(each.shape) for each in answer]
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
    return dict(zip(names, answer, strict=True)), free


def _longer(config: Takes, dim: str) -> int:
    """Another size of a dimension than the example's."""
    axes = [each.shape.index(dim) for each in config.inputs if dim in each.shape]
    return config.sizes.get(dim, _ROWS if 0 in axes or dim == _BATCH else _OTHER_EXAMPLE) + 1


def _shapes(answer: Any) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in flat(answer)]
