"""`torch.export` programs (.pt2), from the archive that `program_archive` made of the upload."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from services.optimizer.conversion.exporting import exporting, from_program, spec_of
from services.optimizer.rejections import Rejection
from shared.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from services.optimizer.conversion.source import Source
    from shared.signature import Dim, TensorSpec

_BATCH: Final = "batch"
_MAX_TENSORS: Final = 64
_MAX_NAME_CHARS: Final = 200


class Program:
    """A program, vetted and loaded."""

    def __init__(self, clean: bytes, threads: int) -> None:
        """Load.

        Raises:
            NotConvertible: torch does not load it.
        """
        self.content = clean
        torch.set_num_threads(threads)
        with exporting():
            (self._exported,) = load_pt2(io.BytesIO(clean)).exported_programs.values()

    @property
    def module(self) -> Any:
        """See `Loaded`."""
        return self._exported.module()

    def source(self) -> Source:
        """See `Loaded`."""
        return from_program(self._exported, None, None, "torch.export program")

    def signature(self) -> Signature:
        """Names and datatypes as the program has them; free dimensions have names of their own."""
        said, spec = self._exported.graph_signature, self._exported.call_spec.in_spec
        places = list(range(len(said.user_inputs)))
        if spec is None or pytree.tree_unflatten(places, spec) != (tuple(places), {}):
            raise Rejection("unsupported_input", "The program's inputs are not tensors one behind the other")
        inputs, outputs = self._tensors(said.user_inputs, "input"), self._tensors(said.user_outputs, "output")
        names = _dimensions(inputs)
        return Signature(inputs=_specs(inputs, names), outputs=_specs(outputs, names))

    def _tensors(self, names: Sequence[Any], what: str) -> list[tuple[str, torch.Tensor]]:
        """What the program says of its inputs or outputs, by names that no two of them have.

        Raises:
            Rejection: not all of them are tensors, or there are none or too many.
        """
        if not 0 < len(names) <= _MAX_TENSORS:
            raise Rejection(
                "unsupported_input", f"The program has {len(names)} {what}s; it may have 1 to {_MAX_TENSORS}"
            )
        values = {node.name: node.meta.get("val") for node in self._exported.graph.nodes}
        found: list[tuple[str, torch.Tensor]] = []
        for place, name in enumerate(names):
            value = values.get(name) if isinstance(name, str) else None
            if not isinstance(value, torch.Tensor):
                raise Rejection("unsupported_input", f"The program's {what} {place} is no tensor")
            known = len(name) <= _MAX_NAME_CHARS and name not in dict(found)
            found.append((name if known else f"{what}_{place}", value))
        return found


def _dimensions(inputs: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """Names of the free dimensions of inputs, by what the program calls them, as `canonical` names them."""
    names: dict[str, str] = {}
    for name, tensor in inputs:
        shape: Sequence[Any] = tensor.shape  # not of whole numbers alone, whatever it is said to be
        for axis, dim in enumerate(shape):
            if isinstance(dim, int) or str(dim) in names:
                continue
            wanted = _BATCH if axis == 0 else f"{name[:50]}_{axis}"
            while wanted in names.values():
                wanted += "_"
            names[str(dim)] = wanted
    return names


def _specs(tensors: Iterable[tuple[str, torch.Tensor]], names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(spec_of(name, tensor, [_dim(dim, names) for dim in tensor.shape]) for name, tensor in tensors)


def _dim(dim: Any, names: Mapping[str, str]) -> Dim:
    """A size, the name of a free one, or -1 for what is computed from free ones."""
    return dim if isinstance(dim, int) else names.get(str(dim), -1)
