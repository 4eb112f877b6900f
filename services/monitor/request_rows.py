"""Outcomes as rows of the table `requests`: one each, to be found by its request's id.

Texts that producers chose are cut, and numbers bounded: a receipt may claim anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from services.monitor.columns import SHORT, numbers, texts
from services.monitor.tables import SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.monitor.fold import Counted
    from shared.outcome_events import Coordinates

LONGEST_ID: Final = 200


def table(windows: Sequence[int], done_ms: Sequence[int], outcomes: Sequence[Counted]) -> pa.Table:
    """The rows of outcomes that completed in these windows, at these moments."""
    series, receipts, _, partitions, offsets, appended_ms = zip(*outcomes, strict=True)
    timings = [each.timings_ns for each in receipts]
    batches = [each.batch for each in receipts]
    requests = [each.request for each in receipts]
    columns: dict[str, pa.Array | Sequence[Any]] = {
        "window_s": windows,
        "request_id": texts([each.request_id for each in receipts], LONGEST_ID),
        "completed_ms": done_ms,
        "model": texts([each.model_name for each in receipts]),
        "version": [each.version for each in series],
        "variant": texts([each.variant for each in receipts]),
        "status": [each.status for each in receipts],
        "error_code": texts([each.error_code for each in receipts]),
        "topic": [each.topic for each in requests],
        "partition": [each.partition for each in requests],
        "offset": [each.offset for each in requests],
        "log_partition": partitions,
        "log_offset": offsets,
        "appended_ms": appended_ms,
        "worker": texts([each.worker for each in receipts]),
        "tenant": texts([each.tenant for each in receipts]),
        "duplicate_of": [each.duplicate_of and _where(each.duplicate_of) for each in receipts],
        "reexecuted": [each.reexecuted for each in receipts],
        "registry_offset": numbers([each.registry_offset for each in receipts]),
        "artifact_sha256": texts([each.artifact_sha256 for each in receipts]),
        "input_sha256": texts([each.input_sha256 for each in receipts]),
        "output_sha256": texts([each.output_sha256 for each in receipts]),
        "batch_id": texts([batch and batch.id for batch in batches]),
        "batch_index": numbers([batch and batch.index for batch in batches]),
        "batch_size": numbers([batch and batch.size for batch in batches]),
        "queue_ns": numbers([each.queue for each in timings]),
        "compute_input_ns": numbers([each.compute_input for each in timings]),
        "compute_infer_ns": numbers([each.compute_infer for each in timings]),
        "compute_output_ns": numbers([each.compute_output for each in timings]),
    }
    schema = SCHEMAS["requests"]
    return pa.Table.from_arrays([pa.array(columns[each.name], type=each.type) for each in schema], schema=schema)


def _where(at: Coordinates) -> str:
    return f"{at.topic[:SHORT]}/{at.partition} offset {at.offset}"
