"""Every series of the report as rows, one a window and value: CSV for people's tools, Parquet for others.

First come the offsets of the outcome log at which counts are exact (section `offsets`), then the counts of outcomes.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.monitor.report.wording import moment
from services.monitor.tally import STATUSES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.monitor.report.content import Report

SCHEMA = pa.schema(
    [
        ("at_s", pa.int64()),
        ("at", pa.string()),
        ("section", pa.string()),
        ("of", pa.string()),
        ("series", pa.string()),
        ("unit", pa.string()),
        ("value", pa.float64()),
    ]
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take for a formula, if a name began with it."""


def _rows(report: Report) -> Iterator[tuple[Any, ...]]:
    start_s = report.span.start_s
    for partition, offset in sorted(report.offsets.items()):
        yield start_s, moment(start_s), "offsets", "outcome log", f"partition {partition}", "next offset", float(offset)
    for version in report.versions:
        for status in STATUSES:
            count = version.tally.outcomes[status]
            yield start_s, moment(start_s), "outcomes", version.name, status, "requests in all", float(count)
        for size, count in sorted(version.tally.of("batch").items()):
            yield start_s, moment(start_s), "batches", version.name, f"size {size}", "requests in all", float(count)
    for each in report.events:
        yield int(each.at_s), moment(each.at_s), "events", each.kind, each.text, "", None
    for line in report.lines:
        for at, value in zip(report.at, line.values, strict=True):
            if value is not None:
                yield at, moment(at), line.section, line.subject, line.name, line.unit, float(value)


def as_csv(report: Report) -> bytes:
    """Comma-separated, with a line of names."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(SCHEMA.names)
    for row in _rows(report):
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in row])
    return out.getvalue().encode()


def as_parquet(report: Report) -> bytes:
    """A Parquet file."""
    rows = list(_rows(report))
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
    arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), out, compression="zstd")
    return out.getvalue()
