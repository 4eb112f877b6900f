"""Rows of the archive as Parquet (zstd), and back. The home of pyarrow.

Two forms, each with a name that manifests repeat. Their columns are documented in docs/audit.md; a column may be added,
anything else is a new form. Headers are msgpack, a list of `[name, value]` pairs; a result is msgpack as in Redis
(`shared.results`), without its receipt.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Row = dict[str, Any]

RECORDS: Final = "aiaas.audit.records/1"
EXCHANGES: Final = "aiaas.audit.exchanges/1"
_REQUIRED: Final = {"offset", "outcome_offset", "timestamp_ms", "request_state", "result_state"}


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name not in _REQUIRED) for name, kind in columns.items()])


SCHEMAS: Final[dict[str, pa.Schema]] = {
    RECORDS: _schema(
        offset=pa.int64(),
        timestamp_ms=pa.int64(),
        key=pa.binary(),
        value=pa.binary(),
        headers=pa.binary(),
        verdict=pa.string(),
    ),
    EXCHANGES: _schema(
        outcome_offset=pa.int64(),
        timestamp_ms=pa.int64(),
        request_id=pa.string(),
        tenant=pa.string(),
        status=pa.string(),
        model_version=pa.int64(),
        request_topic=pa.string(),
        request_partition=pa.int32(),
        request_offset=pa.int64(),
        request_timestamp_ms=pa.int64(),
        request_key=pa.binary(),
        request_headers=pa.binary(),
        request_value=pa.binary(),
        request_state=pa.string(),
        result=pa.binary(),
        result_state=pa.string(),
        artifacts=pa.list_(pa.string()),
    ),
}
_GROUP_BYTES: Final = 8 * 1024 * 1024


def encode(form: str, rows: Sequence[Row], *, size_bytes: int = 0) -> bytes:
    """Rows as a Parquet file. `size_bytes`, about what they hold, decides on the size of its row groups."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMAS[form])
    groups = max(1, size_bytes // _GROUP_BYTES)
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        compression="zstd",
        row_group_size=max(1, -(-len(rows) // groups)),
        use_dictionary=["tenant", "status", "request_topic", "request_state", "result_state"]
        if form == EXCHANGES
        else ["key", "verdict"],
    )
    return out.getvalue()


def decode(form: str, content: bytes, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file, some at a time.

    Raises:
        InvalidInput: it is no Parquet file of this form.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if not set(SCHEMAS[form].names) <= set(file.schema_arrow.names):
            raise InvalidInput(f"a file of {form} has the columns {file.schema_arrow.names}")
        for batch in file.iter_batches(batch_size=256, columns=list(columns) if columns else None):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as err:
        raise InvalidInput(f"not a Parquet file of {form}: {err}") from err
