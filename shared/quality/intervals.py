"""Confidence intervals, vectorised. All are two-sided at `LEVEL`.

- A share of rows: Wilson's score interval (E. B. Wilson, JASA 22, 1927; recommended by L. D. Brown, T. T. Cai and
  A. DasGupta, Statistical Science 16(2), 2001). It does not collapse to a point where all rows agree.
- The difference of two shares of the same rows: D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a
  difference of binomial proportions based on paired data", J. Educational and Behavioral Statistics 37(4), 2012;
  recommended by M. W. Fagerland, S. Lydersen and P. Laake, Statistics in Medicine 33(16), 2014. Only rows that one gets
  right and the other does not say anything, as in McNemar's test; with none of them it still has a width.
- Everything else: the percentile bootstrap over rows (B. Efron and R. Tibshirani, "An Introduction to the Bootstrap",
  1993, chapter 13). It resamples rows, paired, so what one row holds may depend on each other. What no row shows it
  does not know: where nothing differs, the interval is a point.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

from shared.quality.estimates import LEVEL, Estimate

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Statistics = Callable[[Floats], Floats]

RESAMPLES: Final = 2000
_CHUNK_ELEMENTS: Final = 4_000_000
_Z: Final = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def share(right: npt.NDArray[np.bool_]) -> Estimate:
    """The share of rows that are true, with Wilson's interval. `right`: bool[rows], at least one row."""
    rows, value = len(right), float(np.mean(right))
    centre = (value + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    half = _Z / (1 + _Z**2 / rows) * math.sqrt(value * (1 - value) / rows + _Z**2 / (4 * rows**2))
    # At the ends the score interval reaches the value itself; rounding must not leave it outside.
    low, high = min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))
    return Estimate(value=value, low=low, high=high, method="wilson")


def share_lost(reference: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_]) -> Estimate:
    """Share of the reference less that of the candidate on the same rows, with Bonett and Price's interval."""
    rows = len(reference)
    lost, won = int(np.sum(reference & ~candidate)), int(np.sum(candidate & ~reference))
    p_lost, p_won = (lost + 1) / (rows + 2), (won + 1) / (rows + 2)
    difference = p_lost - p_won
    half = _Z * math.sqrt((p_lost + p_won - difference**2) / (rows + 2))
    value = (lost - won) / rows
    low, high = min(value, max(-1.0, difference - half)), max(value, min(1.0, difference + half))
    return Estimate(value=value, low=low, high=high, method="bonett-price")


def bootstrap(rows: Floats, statistics: Statistics, seed: int, resamples: int = RESAMPLES) -> list[Estimate]:
    """Estimates of figures that are computed from means over rows, all from the same resamples.

    Args:
        rows: f64[rows, columns]: what each row contributes.
        statistics: from means f64[samples, columns] to figures f64[samples, figures].
        seed: of the resampling.
        resamples: how often rows are drawn, with replacement, as many as there are.
    """
    count = len(rows)
    random, chunk = np.random.default_rng(seed), max(1, _CHUNK_ELEMENTS // count)
    drawn = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        weights = _times_drawn(random, size, count)
        drawn.append(statistics(weights @ rows / count))
    figures = np.concatenate(drawn)
    values = statistics(rows.mean(axis=0)[None])[0]
    lows, highs = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [
        Estimate(value=float(value), low=float(min(low, value)), high=float(max(high, value)), method="bootstrap")
        for value, low, high in zip(values, lows, highs, strict=True)
    ]


def _times_drawn(random: np.random.Generator, samples: int, rows: int) -> Floats:
    """How often each row is in each sample: f64[samples, rows]."""
    drawn = random.integers(0, rows, (samples, rows)) + rows * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * rows).reshape(samples, rows).astype(np.float64)


def means(rows: Floats, seed: int) -> list[Estimate]:
    """The mean of each column of f64[rows, columns]."""
    return bootstrap(rows, lambda sums: sums, seed)


def exact(value: float) -> Estimate:
    """A figure of the rows themselves."""
    return Estimate(value=value, low=value, high=value, method="exact")
