"""Columns of what receipts claim: texts cut, numbers bounded, since a receipt may claim anything.

Almost none claims anything odd, so a column is made as it is and looked at as a whole; only one that has something odd
is gone through.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from services.monitor.sketch import MOST_NS

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORT: Final = 200


def texts(told: Sequence[str | None], longest: int = SHORT) -> pa.StringArray:
    """The texts, each cut to so many characters."""
    column = pa.array(told, type=pa.string())
    most_bytes = pc.max(pc.binary_length(column)).as_py() or 0
    return column if most_bytes <= longest else pc.utf8_slice_codeunits(column, 0, longest)


def numbers(told: Sequence[int | None]) -> pa.Int64Array:
    """The numbers, each no less than 0 and no more than `MOST_NS`."""
    with suppress(OverflowError):
        column = pa.array(told, type=pa.int64())
        span = pc.min_max(column).as_py()
        if (span["min"] or 0) >= 0 and (span["max"] or 0) <= MOST_NS:
            return column
    return pa.array([number and bounded(number) for number in told], type=pa.int64())


def bounded(number: int) -> int:
    """What a receipt claims, as far as a column and sums of it can hold it."""
    return min(max(number, 0), MOST_NS)
