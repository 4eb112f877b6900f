"""The tables of the history, by name. Every row has the window that it belongs to, by its beginning in Unix seconds.

- `counts`: `n` by `(window_s, model, version, what, bucket)`. `what` is one of `outcome/{status}`, `error/{code}`,
  `duplicates`, `reexecuted`, `executions`, `rows`; `batch` (bucket: requests in the batch); a phase (bucket: of its
  sketch, see `sketch`) and `{phase}_ns`, the sum; `run` and `run_ns` (bucket: rows of the run); `http/{status}`, and
  `unready`, the 503 that answered a look.
- `samples`: `n`, `total` and `most` by `(window_s, instance, service, model, gauge, gpu)`.
- `requests`: one row an outcome that counts. `events`: one row each.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

_TEXT, _INT = pa.string(), pa.int64()
SCHEMAS: Final = {
    "counts": pa.schema(
        [
            ("window_s", _INT),
            ("model", _TEXT),
            ("version", _INT),
            ("what", _TEXT),
            ("bucket", _INT),
            ("n", _INT),
        ]
    ),
    "samples": pa.schema(
        [
            ("window_s", _INT),
            ("instance", _TEXT),
            ("service", _TEXT),
            ("model", _TEXT),
            ("gauge", _TEXT),
            ("gpu", _INT),
            ("n", _INT),
            ("total", pa.float64()),
            ("most", pa.float64()),
        ]
    ),
    "requests": pa.schema(
        [
            ("window_s", _INT),
            ("request_id", _TEXT),
            ("completed_ms", _INT),
            ("model", _TEXT),
            ("version", _INT),
            ("variant", _TEXT),
            ("status", _TEXT),
            ("error_code", _TEXT),
            ("topic", _TEXT),
            ("partition", _INT),
            ("offset", _INT),
            ("log_partition", _INT),
            ("log_offset", _INT),
            ("appended_ms", _INT),
            ("worker", _TEXT),
            ("tenant", _TEXT),
            ("duplicate_of", _TEXT),
            ("reexecuted", pa.bool_()),
            ("registry_offset", _INT),
            ("artifact_sha256", _TEXT),
            ("input_sha256", _TEXT),
            ("output_sha256", _TEXT),
            ("batch_id", _TEXT),
            ("batch_index", _INT),
            ("batch_size", _INT),
            ("queue_ns", _INT),
            ("compute_input_ns", _INT),
            ("compute_infer_ns", _INT),
            ("compute_output_ns", _INT),
        ]
    ),
    "events": pa.schema(
        [
            ("window_s", _INT),
            ("at_s", pa.float64()),
            ("kind", _TEXT),
            ("text", _TEXT),
            ("model", _TEXT),
            ("version", _INT),
            ("instance", _TEXT),
            ("detail", _TEXT),
        ]
    ),
}
"""The tables. Every row has the window that it belongs to."""
