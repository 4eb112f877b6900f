"""Outcomes as rows of the table `requests`: one each, to be found by its request's id.

Texts that producers chose are cut, and numbers bounded: a receipt may claim anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from services.monitor.counting import bounded
from services.monitor.tables import SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.monitor.counting import Outcome
    from shared.events import Coordinates

LONGEST_ID: Final = 200
_SHORT: Final = 200


def table(windows: Sequence[int], done_ms: Sequence[int], outcomes: Sequence[Outcome]) -> pa.Table:
    """The rows of outcomes that completed in these windows, at these moments."""
    receipts = [receipt for _, receipt, *_ in outcomes]
    timings = [each.timings_ns for each in receipts]
    batches = [each.batch for each in receipts]
    columns: dict[str, Sequence[Any]] = {
        "window_s": windows,
        "request_id": [each.request_id[:LONGEST_ID] for each in receipts],
        "completed_ms": done_ms,
        "model": [each.model_name[:_SHORT] for each in receipts],
        "version": [series.version for series, *_ in outcomes],
        "variant": _cut([each.variant for each in receipts]),
        "status": [each.status for each in receipts],
        "error_code": _cut([each.error_code for each in receipts]),
        "topic": [each.request.topic for each in receipts],
        "partition": [each.request.partition for each in receipts],
        "offset": [each.request.offset for each in receipts],
        "log_partition": [partition for _, _, _, partition, _, _ in outcomes],
        "log_offset": [offset for _, _, _, _, offset, _ in outcomes],
        "appended_ms": [at_ms for *_, at_ms in outcomes],
        "worker": [each.worker[:_SHORT] for each in receipts],
        "tenant": _cut([each.tenant for each in receipts]),
        "duplicate_of": [each.duplicate_of and _where(each.duplicate_of) for each in receipts],
        "reexecuted": [each.reexecuted for each in receipts],
        "registry_offset": [bounded(each.registry_offset) for each in receipts],
        "artifact_sha256": _cut([each.artifact_sha256 for each in receipts]),
        "input_sha256": [each.input_sha256[:_SHORT] for each in receipts],
        "output_sha256": _cut([each.output_sha256 for each in receipts]),
        "batch_id": [batch and batch.id[:_SHORT] for batch in batches],
        "batch_index": [batch and bounded(batch.index) for batch in batches],
        "batch_size": [batch and bounded(batch.size) for batch in batches],
        "queue_ns": [bounded(each.queue) for each in timings],
        "compute_input_ns": _maybe([each.compute_input for each in timings]),
        "compute_infer_ns": _maybe([each.compute_infer for each in timings]),
        "compute_output_ns": _maybe([each.compute_output for each in timings]),
    }
    schema = SCHEMAS["requests"]
    return pa.Table.from_arrays([pa.array(columns[each.name], type=each.type) for each in schema], schema=schema)


def _cut(texts: Sequence[str | None]) -> list[str | None]:
    return [text and text[:_SHORT] for text in texts]


def _maybe(numbers: Sequence[int | None]) -> list[int | None]:
    return [None if number is None else bounded(number) for number in numbers]


def _where(at: Coordinates) -> str:
    return f"{at.topic[:_SHORT]}/{at.partition} offset {at.offset}"
