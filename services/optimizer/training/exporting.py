"""A graph as files that torch loads by itself: an exported program (`.pt2`) and TorchScript.

The graph is interpreted as in training (`graph.Network`), its weights as parameters, and exported with its free sizes
free. Inputs and outputs are positional, in the order of the ONNX file; their names travel beside the program, in the
extra file `aiaas.json`. TorchScript is the interpreter traced.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from services.optimizer.training.errors import UnsupportedModel
from services.optimizer.training.graph import Network
from services.optimizer.training.known import Known, computed, shape_of
from services.optimizer.training.operators import OPERATORS
from services.optimizer.training.operators.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from onnx import ModelProto
    from torch import Tensor

    from services.optimizer.training.graph import Step
    from services.optimizer.training.weights import Array

    Answer = Callable[[Sequence[Array]], list[Array]]
    """A loaded file: inputs to outputs, each in the order of the graph."""

EXTRA: Final = "aiaas.json"


class _Symbolic(Network):
    """The network as it is exported: what it computes from sizes is kept in symbols."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__(model)
        self._known = {name: known for name, each in self._constants.items() if (known := Known.of(each)) is not None}

    def _run(self, values: dict[str, Tensor]) -> Iterator[tuple[int, Step]]:
        known = dict(self._known)
        for index, step in enumerate(self.steps):
            self._compute(step, values, known)
            yield index, step

    def _compute(self, step: Step, values: dict[str, Tensor], known: dict[str, Known]) -> None:
        [first, *_] = step.outputs
        given = tuple(known.get(name) for name in step.inputs)
        if step.operator == "Shape":
            known[first] = shape_of(_tensor(step.inputs[0], values, known), step.attributes)
        elif (folded := computed(step.operator, step.attributes, given)) is not None:
            known[first] = folded
        else:
            tensors = tuple(_tensor(name, values, known) if name else None for name in step.inputs)
            found = OPERATORS[step.operator](
                Call(step.operator, step.node, self.opset, step.attributes, tensors, len(step.outputs), given)
            )
            results = found if isinstance(found, tuple) else (found,)
            values.update(zip(step.outputs, results, strict=False))
            return
        # Whoever reads it as a tensor gets one; nobody else pays for it, as what is not used is dropped.
        values[first] = known[first].tensor()


def _tensor(name: str, values: Mapping[str, Tensor], known: Mapping[str, Known]) -> Tensor:
    return values[name] if name in values else known[name].tensor()


class _Positional(nn.Module):
    """Inputs and outputs by their order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs."""
        found = self.network(dict(zip(self.network.inputs, inputs, strict=True)))
        return tuple(found[name] for name in self.network.outputs)


def exported(model: ModelProto, sample: Sequence[Array], free: Sequence[Sequence[int]]) -> Any:
    """The graph as an exported program; `free` are the axes of each input that may have any size.

    Raises:
        UnsupportedModel: with the operators that are not interpreted, or what torch can't export.
    """
    network = _Symbolic(model)
    shapes = [dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in free]
    given = tuple(torch.from_numpy(array) for array in sample)
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch to its developers
            return torch.export.export(
                _Positional(network).eval(), given, dynamic_shapes=(tuple(shapes),), strict=False
            )
    except UnsupportedModel:
        raise
    except Exception as err:  # torch raises all kinds for what depends on values
        raise UnsupportedModel(f"torch.export does not take the graph: {str(err)[:600]}") from err


def pt2(program: Any, about: str) -> bytes:
    """The program as a `.pt2` file; `about` lies in it as `aiaas.json`."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(program, file, extra_files={EXTRA: about})
    return file.getvalue()


def torchscript(model: ModelProto, sample: Sequence[Array], about: str) -> bytes:
    """The graph as TorchScript. While it is traced, sizes are tensors, and so free.

    Raises:
        UnsupportedModel: with the operators that are not interpreted, or it can't be traced.
    """
    module = _Positional(_Symbolic(model)).eval()
    file = io.BytesIO()
    given = tuple(torch.from_numpy(array) for array in sample)
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            traced = torch.jit.trace(module, given, check_trace=False)  # type: ignore[no-untyped-call]  # torch does not say
            torch.jit.save(traced, file, _extra_files={EXTRA: about})
    except UnsupportedModel:
        raise
    except Exception as err:  # as above
        raise UnsupportedModel(f"torch.jit.trace does not take the graph: {str(err)[:600]}") from err
    return file.getvalue()


def loaded(content: bytes, file_format: str) -> Answer:
    """The file as torch loads it by itself."""
    with warnings.catch_warnings(action="ignore"):
        module: Any = (
            torch.export.load(io.BytesIO(content)).module()
            if file_format == "pt2"
            else torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]  # as above
        )

    def answer(inputs: Sequence[Array]) -> list[Array]:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            found = module(*(torch.from_numpy(array) for array in inputs))
        several = found if isinstance(found, tuple | list) else (found,)
        return [each.numpy() for each in several]

    return answer
