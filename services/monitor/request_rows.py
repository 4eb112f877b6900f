"""Outcomes as rows of the table `requests`: one each, to be found by its request's id.

Texts that producers chose are cut, and numbers bounded: a receipt may claim anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from services.monitor.columns import SHORT, numbers, texts
from services.monitor.tables import SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.monitor.counting import Of
    from services.monitor.portion import Portion
    from shared.outcome_events import Coordinates

LONGEST_ID: Final = 200


def table(of: Sequence[Of], done_ms: Sequence[int], outcomes: Portion, spent: Mapping[str, pa.Int64Array]) -> pa.Table:
    """The rows of outcomes of these versions that completed in these windows, at these moments, and took so long."""
    receipts, batches = outcomes.receipts, outcomes.batches
    requests = [each.request for each in receipts]
    columns: dict[str, pa.Array | Sequence[Any]] = {
        "window_s": [at_s for at_s, _, _ in of],
        "request_id": texts([each.request_id for each in receipts], LONGEST_ID),
        "completed_ms": done_ms,
        "model": texts([each.model_name for each in receipts]),
        "version": [version for _, _, version in of],
        "variant": texts([each.variant for each in receipts]),
        "status": outcomes.statuses,
        "error_code": texts(outcomes.error_codes),
        "topic": [each.topic for each in requests],
        "partition": [each.partition for each in requests],
        "offset": [each.offset for each in requests],
        "log_partition": outcomes.log_partitions,
        "log_offset": outcomes.log_offsets,
        "appended_ms": outcomes.appended_ms,
        "worker": texts([each.worker for each in receipts]),
        "tenant": texts([each.tenant for each in receipts]),
        "duplicate_of": [each and _where(each) for each in outcomes.duplicates_of],
        "reexecuted": outcomes.reexecuted,
        "registry_offset": numbers([each.registry_offset for each in receipts]),
        "artifact_sha256": texts([each.artifact_sha256 for each in receipts]),
        "input_sha256": texts([each.input_sha256 for each in receipts]),
        "output_sha256": texts([each.output_sha256 for each in receipts]),
        "batch_id": texts([None if batch is None else batch.id for batch in batches]),
        "batch_index": numbers(outcomes.batch_indexes),
        "batch_size": numbers(outcomes.batch_sizes),
        **{f"{phase}_ns": column for phase, column in spent.items()},
    }
    schema = SCHEMAS["requests"]
    return pa.Table.from_arrays([pa.array(columns[each.name], type=each.type) for each in schema], schema=schema)


def _where(at: Coordinates) -> str:
    return f"{at.topic[:SHORT]}/{at.partition} offset {at.offset}"
