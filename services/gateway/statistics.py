"""What the monitor counted, in the shape of Triton's statistics extension. Pure.

The numbers are exact for the outcomes below the offsets that each entry names, and may be a second old. They differ
from Triton's in two ways, since outcomes are their source: they go back to the beginning of the outcome log, not of a
process; and what was answered with the outcome of an earlier request of the same id counts in `success` alone.
`inference_count` and `batch_size` count rows; a request to a model whose rows were not proved independent counts 1.
There is no response cache: nothing ever hits or misses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shared.outcome_events import Duration, ModelStatistics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shared.registry import Model, Registry
    from shared.statistics import Statistics

_NONE: Final = Duration()


def all_models(registry: Registry, statistics: Statistics) -> dict[str, Any]:
    """Of every version of every model."""
    rows = [row for _, model in sorted(registry.models.items()) for row in _rows(model, statistics, model.versions)]
    return {"model_stats": rows}


def one_model(registry: Registry, statistics: Statistics, name: str, number: int | None) -> dict[str, Any]:
    """Of one version, or of all versions of a model.

    Raises:
        UnknownModel, UnknownVersion: not in the registry.
    """
    numbers = registry.model(name).versions if number is None else [registry.version(name, number).number]
    return {"model_stats": _rows(registry.model(name), statistics, numbers)}


def _rows(model: Model, statistics: Statistics, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Versions that could answer, and those that once did; not what never got through the gate."""
    rows = []
    for number in sorted(numbers):
        counted = statistics.of(model.name, number)
        if counted is not None or model.versions[number].state == "ready":
            rows.append(_row(counted or _nothing(model.name, number)))
    return rows


def _row(counted: ModelStatistics) -> dict[str, Any]:
    return {
        "name": counted.model,
        "version": str(counted.version),
        "last_inference": counted.last_inference_ms,
        "inference_count": counted.inferences,
        "execution_count": counted.executions,
        "inference_stats": {
            "success": _duration(counted.success),
            "fail": _duration(counted.fail),
            "queue": _duration(counted.queue),
            "compute_input": _duration(counted.compute_input),
            "compute_infer": _duration(counted.compute_infer),
            "compute_output": _duration(counted.compute_output),
            "cache_hit": _duration(_NONE),
            "cache_miss": _duration(_NONE),
        },
        "batch_stats": [
            {
                "batch_size": runs.batch_size,
                "compute_input": _duration(runs.compute_input),
                "compute_infer": _duration(runs.compute_infer),
                "compute_output": _duration(runs.compute_output),
            }
            for runs in counted.runs
        ],
        "exact_at": {str(partition): offset for partition, offset in sorted(counted.offsets.items())},
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


def _nothing(model: str, version: int) -> ModelStatistics:
    """A version that no request has met."""
    return ModelStatistics(
        model=model,
        version=version,
        last_inference_ms=0,
        inferences=0,
        success=_NONE,
        fail=_NONE,
        queue=_NONE,
        compute_input=_NONE,
        compute_infer=_NONE,
        compute_output=_NONE,
        offsets={},
    )
