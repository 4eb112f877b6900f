"""scikit-learn to ONNX, by skl2onnx: estimators and pipelines, with class scores as one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from services.cli.convert.inputs import Input
from services.cli.errors import CommandError, NotTried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.cli.convert.parity import Runs

OPSET: Final = 20


def is_one(model: Any) -> bool:
    """Whether an object is an estimator of scikit-learn."""
    return any(base.__module__.startswith("sklearn.") for base in type(model).__mro__)


def takes(model: Any, said: Sequence[Input]) -> list[Input]:
    """The inputs as said, else one matrix of as many columns as the model was trained with.

    Raises:
        NotTried: nothing was said, and the model does not know.
    """
    if said:
        return list(said)
    columns = getattr(model, "n_features_in_", None)
    if columns is None:
        raise NotTried("The model does not say how many columns it takes: --input 'x=FP32[batch,COLUMNS]'.")
    return [Input("input", "FP32", ("batch", int(columns)))]


def convert(model: Any, inputs: Sequence[Input]) -> tuple[bytes, Runs]:
    """The model as ONNX, and what runs the original.

    Raises:
        CommandError: skl2onnx does not convert it, or is not installed.
    """
    try:
        from skl2onnx import to_onnx  # noqa: PLC0415 - not everybody has it
        from skl2onnx.common import data_types  # noqa: PLC0415
    except ImportError as err:
        raise CommandError("scikit-learn models are converted by skl2onnx: pip install 'aiaas[convert]'.") from err
    types = {
        "FP32": data_types.FloatTensorType,
        "FP64": data_types.DoubleTensorType,
        "INT64": data_types.Int64TensorType,
        "INT32": data_types.Int32TensorType,
        "BOOL": data_types.BooleanTensorType,
    }
    shaped = [
        (each.name, types[each.datatype]([None if isinstance(dim, str) else dim for dim in each.shape]))
        for each in inputs
    ]
    options = {"zipmap": False} if hasattr(model, "predict_proba") else None
    try:
        made = to_onnx(model, initial_types=shaped, options=options, target_opset={"": OPSET, "ai.onnx.ml": 3})
    except Exception as err:
        raise CommandError(f"skl2onnx does not convert {type(model).__name__}: {err}") from err
    _name_rows(made, inputs)
    return made.SerializeToString(), lambda feeds: _answers(model, [feeds[each.name] for each in inputs])


def _name_rows(made: Any, inputs: Sequence[Input]) -> None:
    """Free dimensions by the names that were said; the rows of the outputs as those of the first input."""
    for value, each in zip(made.graph.input, inputs, strict=True):
        for axis, name in each.free.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    rows = inputs[0].free.get(0)
    for value in made.graph.output:
        dims = value.type.tensor_type.shape.dim
        if rows and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = rows


def _answers(model: Any, given: Sequence[Any]) -> list[Any]:
    """What the original answers, in the order of skl2onnx: labels and scores, predictions, or what it transforms to."""
    rows = given[0] if len(given) == 1 else np.concatenate(given, axis=1)
    if hasattr(model, "predict_proba"):
        return [model.predict(rows), model.predict_proba(rows)]
    if hasattr(model, "predict"):
        return [model.predict(rows)]
    return [model.transform(rows)]
