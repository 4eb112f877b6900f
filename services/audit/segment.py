"""A segment in the making: raw records of one partition of a log, and what its outcomes are about.

It is held in memory, within bounds (`AIAAS_AUDIT_SEGMENT_BYTES`, `…_ROWS`), and written as one: see `writer`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from services.audit.records import RecordedRequest
from shared import oip, requests
from shared.errors import AiaasError
from shared.results import Result

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from services.audit.judge import Verdict
    from services.audit.layout import Gap
    from services.audit.records import Gone
    from services.audit.tables import Row
    from shared.outcome_events import Receipt

_ROW_BYTES: Final = 300
"""What a row costs besides its bytes, about."""
_INT64: Final = 2**63
_DAY_MS: Final = 24 * 60 * 60 * 1000
_pack: Final = msgspec.msgpack.Encoder().encode
"""The bytes of `shared.codec.pack` in a seventh of its time: every row has headers, twice."""


@dataclass
class Segment:
    """What was read since the last one was written. `size_bytes` is about what it holds."""

    first: int
    next: int
    began_s: float = field(default_factory=time.monotonic)
    records: list[Row] = field(default_factory=list)
    exchanges: dict[tuple[str, str], list[Row]] = field(default_factory=dict)
    """By model and day."""
    gaps: list[Gap] = field(default_factory=list)
    size_bytes: int = 0
    records_bytes: int = 0

    def add(self, record: ConsumerRecord, verdict: Verdict | None) -> None:
        """One more raw record."""
        headers = _pack(record.headers)
        self.records.append(
            {
                "offset": record.offset,
                "timestamp_ms": record.timestamp,
                "key": record.key,
                "value": record.value,
                "headers": headers,
                "verdict": verdict,
            }
        )
        self.next = record.offset + 1
        size_bytes = len(record.key or b"") + len(record.value or b"") + len(headers) + _ROW_BYTES
        self.records_bytes += size_bytes
        self.size_bytes += size_bytes

    def add_exchange(
        self, record: ConsumerRecord, receipt: Receipt, request: RecordedRequest | Gone, result: Result | Gone
    ) -> None:
        """What an accepted outcome is about."""
        row = exchange(record, receipt, request, result)
        self.exchanges.setdefault((receipt.model_name, day_of(record.timestamp)), []).append(row)
        self.size_bytes += size_of(row)


def size_of(row: Row) -> int:
    """About what a row of requests and results holds, in bytes."""
    held = row["request_value"], row["request_headers"], row["result"]
    return sum([len(content) for content in held if content]) + _ROW_BYTES


def exchange(record: ConsumerRecord, receipt: Receipt, request: RecordedRequest | Gone, result: Result | Gone) -> Row:
    """A row of requests and results."""
    there = request if isinstance(request, RecordedRequest) else None
    answer = result if isinstance(result, Result) else None
    version = receipt.model_version
    return {
        "outcome_offset": record.offset,
        "timestamp_ms": record.timestamp,
        "request_id": receipt.request_id,
        "tenant": receipt.tenant,
        "status": receipt.status,
        "model_version": version if version is not None and -_INT64 <= version < _INT64 else None,
        "request_topic": receipt.request.topic,
        "request_partition": receipt.request.partition,
        "request_offset": receipt.request.offset,
        "request_timestamp_ms": there and there.timestamp_ms,
        "request_key": there and there.key,
        "request_headers": there and _pack(there.headers),
        "request_value": there and there.value,
        "request_state": "present" if there else request,
        "result": answer and answer.encode(),
        "result_state": "present" if answer else result,
        "artifacts": sorted(_artifacts_of(there) | _outputs_of(answer)),
    }


def day_of(timestamp_ms: int) -> str:
    """The UTC day of a time; a producer may claim any, and then it is the first day there is."""
    return _day(max(timestamp_ms, 0) // _DAY_MS)


@lru_cache(maxsize=16)  # nearly all outcomes are of the same day
def _day(number: int) -> str:
    try:
        return f"{datetime.fromtimestamp(number * _DAY_MS / 1000, UTC):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        return "1970-01-01"


def _artifacts_of(request: RecordedRequest | None) -> set[str]:
    """The digests of the request's tensors that lie in the artifact store: hardly any has some."""
    if request is None or not request.value or b"sha256" not in request.value:
        return set()
    try:
        headers = requests.from_kafka((name, value or b"") for name, value in request.headers)
        inputs = oip.decode_request(headers.content_type, request.value, headers.header_length).inputs
    except AiaasError:
        return set()  # it was never run
    return {tensor.artifact.sha256 for tensor in inputs if tensor.artifact is not None}


def _outputs_of(result: Result | None) -> set[str]:
    return {tensor.artifact.sha256 for tensor in result.outputs if tensor.artifact} if result else set()
