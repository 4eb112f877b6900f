"""What a model takes, as it is said on the command line: `x=FP32[batch,8]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.cli.errors import NotTried

_FORM: Final = re.compile(r"([A-Za-z_]\w*)=([A-Z0-9]+)\[([\w,\s]*)\]")
_DTYPES: Final = {
    "FP64": np.float64,
    "FP32": np.float32,
    "FP16": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "BOOL": np.bool_,
}
_OTHER_AXES: Final = 16


@dataclass(frozen=True)
class Input:
    """An input: a whole number in `shape` is fixed, a name is a free dimension."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @property
    def free(self) -> dict[int, str]:
        """The names of its free axes."""
        return {axis: dim for axis, dim in enumerate(self.shape) if isinstance(dim, str)}

    def example(self, rows: int, seed: int = 0) -> npt.NDArray[np.generic]:
        """Numbers of its shape: `rows` along the first axis, if that is free, and 16 along others that are."""
        random = np.random.default_rng(seed)
        shape = [
            dim if isinstance(dim, int) else rows if axis == 0 else _OTHER_AXES for axis, dim in enumerate(self.shape)
        ]
        dtype = _DTYPES[self.datatype]
        if np.issubdtype(dtype, np.floating):
            return random.standard_normal(shape).astype(dtype)
        return random.integers(0, 2, shape).astype(dtype)


def parse(text: str) -> Input:
    """An input from the command line.

    Raises:
        NotTried: it is not NAME=DATATYPE[SHAPE].
    """
    found = _FORM.fullmatch(text)
    if found is None or found[2] not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise NotTried(f"{text!r} is not NAME=DATATYPE[SHAPE]: as in --input 'x=FP32[batch,8]'; datatypes are {known}.")
    dims = [dim.strip() for dim in found[3].split(",") if dim.strip()]
    return Input(found[1], found[2], tuple(int(dim) if dim.isdecimal() else dim for dim in dims))
