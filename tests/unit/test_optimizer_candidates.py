"""How the speed of a candidate is summed up."""

from __future__ import annotations

import pytest

from services.optimizer.sandbox import measure


def test_speedup_is_a_geometric_mean():
    assert measure.speedup([1.0, 4.0], [2.0, 2.0]) == pytest.approx(1.0)
    assert measure.speedup([1.0], [0.5]) == pytest.approx(2.0)
