"""Whole torch modules, as `torch.save(module)` pickles them, to ONNX by way of torch.export."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from services.cli.errors import CommandError, NotTried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.cli.convert.inputs import Input
    from services.cli.convert.parity import Runs

OPSET: Final = 20


def load(path: Path) -> Any:
    """What `torch.save` wrote; it runs what is in the file.

    Raises:
        CommandError: torch is not here, or does not load it.
    """
    try:
        import torch  # noqa: PLC0415 - heavy, and only these files need it
    except ImportError as err:
        raise CommandError(f"{path.name} is a torch file, and torch is not installed here.") from err
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as err:
        raise CommandError(f"torch does not load {path.name}: {err}") from err


def is_one(model: Any) -> bool:
    """Whether an object is a torch module."""
    return any(f"{base.__module__}.{base.__name__}" == "torch.nn.modules.module.Module" for base in type(model).__mro__)


def convert(model: Any, inputs: Sequence[Input]) -> tuple[bytes, Runs]:
    """The module as ONNX, and what runs the original.

    Raises:
        NotTried: nobody says what it takes.
        CommandError: torch does not export it.
    """
    import torch  # noqa: PLC0415 - as above

    if not inputs:
        raise NotTried("A torch module does not say what it takes: --input 'x=FP32[batch,3,224,224]', one each.")
    model = model.eval()
    given = tuple(torch.from_numpy(np.array(each.example(2))) for each in inputs)
    shapes = tuple({axis: torch.export.Dim(name) for axis, name in each.free.items()} for each in inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
            warnings.simplefilter("ignore")  # the exporter's own use of what torch deprecates
            path = Path(directory) / "model.onnx"
            torch.onnx.export(
                model,
                given,
                path,
                input_names=[each.name for each in inputs],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
            content = path.read_bytes()
    except Exception as err:
        raise CommandError(f"torch does not export {type(model).__name__}: {err}") from err

    @torch.no_grad()
    def run(feeds: Any) -> list[Any]:
        answer = model(*(torch.from_numpy(np.array(feeds[each.name])) for each in inputs))
        several = (
            answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list | tuple) else [answer]
        )
        return [each.numpy() for each in several]

    return content, run
