"""Every verdict as a row of a Parquet file, written in portions."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.audit.replay.verdicts import Verdict

_PORTION: Final = 5000
SCHEMA: Final = pa.schema(
    [
        ("request_id", pa.string()),
        ("model", pa.string()),
        ("version", pa.int32()),
        ("variant", pa.string()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("batch_id", pa.string()),
        ("batch_index", pa.int32()),
        ("class", pa.string()),
        ("reason", pa.string()),
        ("recorded_sha256", pa.string()),
        ("replayed_sha256", pa.string()),
        ("max_abs_difference", pa.float64()),
        ("recorded_infer_ns", pa.int64()),
        ("replayed_infer_ns", pa.int64()),
        ("worker", pa.string()),
    ]
)


@contextmanager
def written(path: Path) -> Iterator[Callable[[Verdict], None]]:
    """A function that adds a verdict to the file."""
    held: list[dict[str, Any]] = []
    with parquet.ParquetWriter(path, SCHEMA, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(held, SCHEMA))
            held.clear()

        def add(verdict: Verdict) -> None:
            held.append(_row(verdict))
            if len(held) >= _PORTION:
                flush()

        yield add
        flush()


def _row(verdict: Verdict) -> dict[str, Any]:
    receipt = verdict.receipt
    return {
        "request_id": receipt.request_id,
        "model": receipt.model_name,
        "version": receipt.model_version,
        "variant": receipt.variant,
        "topic": receipt.request.topic,
        "partition": receipt.request.partition,
        "offset": receipt.request.offset,
        "batch_id": receipt.batch.id if receipt.batch else None,
        "batch_index": receipt.batch.index if receipt.batch else None,
        "class": verdict.verdict,
        "reason": verdict.reason,
        "recorded_sha256": receipt.output_sha256,
        "replayed_sha256": verdict.replayed_sha256,
        "max_abs_difference": verdict.max_abs,
        "recorded_infer_ns": receipt.timings_ns.compute_infer,
        "replayed_infer_ns": verdict.infer_ns,
        "worker": verdict.worker,
    }
