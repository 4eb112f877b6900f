"""The converted file beside the original, at several numbers of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from services.cli.errors import CommandError

if TYPE_CHECKING:
    from services.cli.convert.inputs import Input

Runs = Callable[[Mapping[str, Any]], Sequence[Any]]
"""From arrays by input name to the original's outputs, in order."""
ROWS: Final = (1, 2, 7)
RTOL: Final = 1e-3
ATOL: Final = 1e-4


def check(content: bytes, inputs: Sequence[Input], run: Runs) -> float:
    """Run both; returns the largest difference of two numbers.

    Raises:
        CommandError: they answer differently, or the file does not run.
    """
    import onnxruntime as ort  # noqa: PLC0415 - heavy, and only this command needs it

    try:
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        worst = 0.0
        for rows in ROWS:
            feeds = {each.name: each.example(rows, seed=rows) for each in inputs}
            for found, expected in zip(session.run(None, feeds), run(feeds), strict=True):
                worst = max(worst, _difference(np.asarray(found), np.asarray(expected)))
    except CommandError:
        raise
    except Exception as err:
        raise CommandError(f"The converted model does not run as the original does: {err}") from err
    return worst


def _difference(found: Any, expected: Any) -> float:
    expected = expected.reshape(found.shape)
    if found.dtype.kind != "f":
        if not (found == expected.astype(found.dtype)).all():
            raise CommandError("The converted model answers with other labels than the original.")
        return 0.0
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    if not np.allclose(found, expected, rtol=RTOL, atol=ATOL, equal_nan=True):
        raise CommandError(f"The converted model's answers differ from the original's by {difference.max():g}.")
    return float(difference.max(initial=0.0))
