"""Drift: whether the rows that a version sees now, and what it answers, are like those it saw at first. Pure.

Workers take a few numbers of each of a sample of rows, one of each request (`services.worker.observing`), and publish
them as histograms. The first rows of a version are its reference. What follows is cut into windows, and each feature of
a window is held against the reference: numbers by the two-sample Kolmogorov-Smirnov test (with Stephens' correction;
between bins, which only makes it more cautious), classes by the chi-squared test of homogeneity, rare ones together.

A window has drifted if a feature's p-value is below `alpha` over the number of features (Bonferroni) *and* its distance
is at least `least_distance`, since among many rows the smallest difference is significant and of no interest. So where
requests are independent of each other, whatever the rows of one have in common, **at most `alpha` of the windows are
called drifted without a drift**. Two in a row raise the alarm, two without end it.

Sources: W. H. Press et al., Numerical Recipes (3rd ed.), 14.3; M. A. Stephens, JRSS B 32 (1970).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shared.bins import LAST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.metric_events import Feature, RowsObserved

MAX_VERSIONS: Final = 200
MAX_FEATURES: Final = 32
_IN_A_ROW: Final = 2
_LEAST_EXPECTED: Final = 5
_TERMS: Final = 100


@dataclass(frozen=True)
class Sensitivity:
    """When what is compared, and what counts as a drift."""

    reference_rows: int = 1000
    window_rows: int = 200
    window_s: float = 20.0
    """A window is compared when it has so many rows, or is so old and has `least_rows`."""
    least_rows: int = 60
    alpha: float = 0.001
    least_distance: float = 0.1


@dataclass(frozen=True)
class Compared:
    """A feature of a window beside its reference."""

    feature: str
    kind: str
    statistic: float
    """The largest difference of the distributions (numbers), or half the sum of all differences (classes)."""
    p_value: float
    drifted: bool


@dataclass(slots=True)
class Rows:
    """Histograms of the features of some rows."""

    rows: int = 0
    kinds: dict[str, str] = field(default_factory=dict)
    bins: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, rows: int, features: Mapping[str, Feature]) -> None:
        """Some more rows. What is beyond the bounds is left out."""
        self.rows += max(rows, 0)
        for name, feature in features.items():
            if name not in self.bins and len(self.bins) >= MAX_FEATURES:
                continue
            self.kinds[name] = feature.kind
            held = self.bins.setdefault(name, Counter())
            for number, count in feature.bins.items():
                if abs(number) <= LAST + 1 and count > 0:
                    held[number] += count


@dataclass(slots=True)
class Watch:
    """One version: its reference, the window that fills, and what came of the last one."""

    model: str
    version: int
    reference: Rows = field(default_factory=Rows)
    window: Rows = field(default_factory=Rows)
    began_ns: int = 0
    compared: list[Compared] = field(default_factory=list)
    windows: int = 0
    in_a_row: int = 0
    """Windows that drifted, or (below 0) did not, one after the other."""
    alarm: bool = False

    def add(self, event: RowsObserved, how: Sensitivity) -> bool:
        """Take in some rows; whether a window was compared."""
        if self.reference.rows < how.reference_rows:
            self.reference.add(event.rows, event.features)
            return False
        if not self.window.rows:
            self.began_ns = event.at_ns
        self.window.add(event.rows, event.features)
        old = event.at_ns - self.began_ns >= how.window_s * 1e9
        if self.window.rows < (how.least_rows if old else how.window_rows):
            return False
        self._compare(how)
        return True

    def _compare(self, how: Sensitivity) -> None:
        self.compared = compare(self.reference, self.window, how)
        self.window, self.windows = Rows(), self.windows + 1
        if any(each.drifted for each in self.compared):
            self.in_a_row = max(self.in_a_row, 0) + 1
        else:
            self.in_a_row = min(self.in_a_row, 0) - 1
        if abs(self.in_a_row) >= _IN_A_ROW:
            self.alarm = self.in_a_row > 0


@dataclass(slots=True)
class Drift:
    """All versions that are watched, by `model/version`."""

    watched: dict[str, Watch] = field(default_factory=dict)

    def add(self, event: RowsObserved, how: Sensitivity) -> Watch | None:
        """Take in some rows; the version's watch if a window was compared. The oldest version makes room for a new."""
        key = f"{event.model}/{event.version}"
        if key not in self.watched and len(self.watched) >= MAX_VERSIONS:
            del self.watched[min(self.watched, key=lambda each: self.watched[each].began_ns)]
        watch = self.watched.setdefault(key, Watch(event.model, event.version))
        return watch if watch.add(event, how) else None


def compare(reference: Rows, window: Rows, how: Sensitivity) -> list[Compared]:
    """Every feature that both have."""
    both = [name for name in reference.bins if name in window.bins]
    found = []
    for name in both:
        test = chi_squared if reference.kinds[name] == "class" else kolmogorov_smirnov
        distance, p_value = test(reference.bins[name], window.bins[name])
        drifted = p_value < how.alpha / len(both) and distance >= how.least_distance
        found.append(Compared(name, reference.kinds[name], distance, p_value, drifted))
    return found


def kolmogorov_smirnov(left: Mapping[int, int], right: Mapping[int, int]) -> tuple[float, float]:
    """The largest difference of two distributions, and how likely it is at least that large by chance."""
    n, m = sum(left.values()), sum(right.values())
    if not n or not m:
        return 0.0, 1.0
    below_left = below_right = 0
    distance = 0.0
    for number in sorted(left.keys() | right.keys()):
        below_left += left.get(number, 0)
        below_right += right.get(number, 0)
        distance = max(distance, abs(below_left / n - below_right / m))
    effective = math.sqrt(n * m / (n + m))
    return distance, _kolmogorov((effective + 0.12 + 0.11 / effective) * distance)


def _kolmogorov(value: float) -> float:
    """The probability that Kolmogorov's statistic is larger."""
    if value < 0.2:  # noqa: PLR2004 - there it is 1 to ten digits, and the series does not converge
        return 1.0
    terms = ((-1.0) ** (k - 1) * math.exp(-2 * k * k * value * value) for k in range(1, _TERMS))
    return min(max(2 * sum(terms), 0.0), 1.0)


def chi_squared(left: Mapping[int, int], right: Mapping[int, int]) -> tuple[float, float]:
    """Half the sum of the differences of two sets of shares, and how likely it is at least as uneven by chance."""
    n, m = sum(left.values()), sum(right.values())
    if not n or not m:
        return 0.0, 1.0
    classes = left.keys() | right.keys()
    distance = sum(abs(left.get(each, 0) / n - right.get(each, 0) / m) for each in classes) / 2
    cells, rare = [], [0, 0]
    for each in classes:
        pair = (left.get(each, 0), right.get(each, 0))
        if sum(pair) * min(n, m) / (n + m) < _LEAST_EXPECTED:
            rare = [rare[0] + pair[0], rare[1] + pair[1]]
        else:
            cells.append(pair)
    if sum(rare) * min(n, m) / (n + m) >= _LEAST_EXPECTED:
        cells.append((rare[0], rare[1]))
    statistic = 0.0
    for pair in cells:
        for count, of in zip(pair, (n, m), strict=True):
            expected = sum(pair) * of / (n + m)
            statistic += (count - expected) ** 2 / expected
    return distance, chi_squared_above(statistic, len(cells) - 1)


def chi_squared_above(statistic: float, degrees: int) -> float:
    """The probability that a chi-squared variable is larger: the finite sums for whole and half numbers."""
    if degrees < 1:
        return 1.0
    half = statistic / 2
    if degrees % 2 == 0:
        term, total = math.exp(-half), 0.0
        for k in range(degrees // 2):
            total += term
            term *= half / (k + 1)
        return min(total, 1.0)
    total, term = math.erfc(math.sqrt(half)), math.exp(-half) * math.sqrt(half) / math.gamma(1.5)
    for k in range((degrees - 1) // 2):
        total += term
        term *= half / (k + 1.5)
    return min(total, 1.0)
