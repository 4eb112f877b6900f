"""Running a model inside a recipe: what rows are, and the means that runs have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from services.optimizer.sandbox import signature
from services.optimizer.sandbox.engine import Engine
from shared.tensors import Array

if TYPE_CHECKING:
    from onnx import ModelProto

Rows = Sequence[Mapping[str, Array]]
"""Feeds, one a run: an array for each input by name. A run may hold any number of rows along the model's batch axes."""


class Means(Struct, frozen=True, kw_only=True):
    """What a run may use. Several threads may add in another order: one gives the same bytes again."""

    threads: int = 1
    run_timeout_s: float = 10.0


def answers(model: ModelProto, rows: Rows, means: Means) -> list[list[Array]]:
    """All outputs of each run, in the model's order.

    Raises:
        Rejection: it does not load or run.
    """
    engine = Engine(
        model.SerializeToString(), signature.read(model), threads=means.threads, run_timeout_s=means.run_timeout_s
    )
    return [engine.run(feeds) for feeds in rows]
