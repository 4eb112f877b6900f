"""The command: load what its owner trusts, convert, run both, write the ONNX file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated, Any

import typer

from services.cli.convert import inputs as said
from services.cli.convert import parity, sklearn_model, torch_model
from services.cli.errors import CommandError, NotTried
from services.cli.printing import Json, as_json, console, size


def convert(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A pickled model.")],
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The ONNX file; else FILE with .onnx.")] = None,
    takes: Annotated[
        list[str] | None, typer.Option("--input", help="What it takes, as 'x=FP32[batch,8]'; once for each input.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="The file is yours: loading a pickle runs what is in it.")
    ] = False,
    json: Json = False,
) -> None:
    """Make ONNX of a scikit-learn model (pickle, joblib) or a whole torch module (.pt), here, and run both to compare.

    The platform takes no pickles: this is how such a model gets there. It loads the file, which runs what is in it.
    """
    if not trust:
        raise NotTried(f"Loading {file.name} runs what is in it, as you. If it is yours, say so: --trust.")
    inputs = [said.parse(text) for text in takes or ()]
    model = _load(file)
    if sklearn_model.is_one(model):
        inputs = sklearn_model.takes(model, inputs)
        content, run = sklearn_model.convert(model, inputs)
    elif torch_model.is_one(model):
        content, run = torch_model.convert(model, inputs)
    else:
        raise CommandError(
            f"{file.name} holds a {type(model).__name__}, neither a scikit-learn model nor a torch module."
        )
    worst = parity.check(content, inputs, run)
    path = out or file.with_suffix(".onnx")
    path.write_bytes(content)
    if json:
        told = {"file": str(path), "byte_size": len(content), "max_abs_error": worst, "rows": list(parity.ROWS)}
        as_json({**told, "model": type(model).__name__, "inputs": [each.name for each in inputs]})
        return
    rows = ", ".join(map(str, parity.ROWS))
    console().print(
        f"{path}: {size(len(content))} of ONNX from a {type(model).__name__}; at {rows} rows its answers differ from "
        f"the original's by {worst:.2g} at most. Next: aiaas models upload {path} --name NAME --wait",
        markup=False,
        soft_wrap=True,
    )


def _load(path: Path) -> Any:
    """The object in the file.

    Raises:
        CommandError: nothing here loads it.
    """
    if zipfile.is_zipfile(path):
        return torch_model.load(path)
    try:
        import joblib  # noqa: PLC0415 - it comes with scikit-learn; plain pickles do without
    except ImportError:
        joblib = None
    try:
        if joblib is not None:
            return joblib.load(path)
        with path.open("rb") as content:
            return pickle.load(content)  # noqa: S301 - its owner said --trust
    except Exception as err:
        raise CommandError(f"{path.name} does not load as a pickle here: {err}") from err
