"""Bins for numbers of any size: fixed, so that histograms of any workers, batches and days add up.

Bin 0 has all up to a millionth, and beyond that a bin spans 5%: positive numbers have positive bins, negative ones
negative. So a bin tells a number to 2.5%, whatever its unit is, and what differs by less than that looks the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

LEAST: Final = 1e-6
WIDTH: Final = 1.05
LAST: Final = 1000
"""The bin of all larger numbers, from about 1.5e15 on, and of infinity."""
NO_NUMBER: Final = LAST + 1


def of(values: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bin of each number, of an array of any shape."""
    held = np.asarray(values, dtype=np.float64)
    size = np.clip(np.abs(held), LEAST, LEAST * WIDTH**LAST)
    found = np.ceil(np.log(np.nan_to_num(size, nan=LEAST) / LEAST) / np.log(WIDTH) - 1e-9).astype(np.int64)
    return np.where(np.isnan(held), NO_NUMBER, np.where(held < 0, -found, found))


def middle(number: int) -> float:
    """A number of a bin."""
    if number == 0:
        return 0.0
    return float(np.sign(number) * LEAST * WIDTH ** (abs(min(number, LAST)) - 0.5))
