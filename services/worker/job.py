"""A job: one record of a request topic, read as far as it could be.

Reading never fails: what is wrong with a record is the job's `error`, and its outcome will say so. A record without a
valid id gets the one derived from its coordinates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from services.worker.batching import ShapeKey
from shared import logs
from shared.errors import AiaasError, InvalidId, InvalidInput, WorkerCrashed
from shared.oip import decode_request
from shared.registry import Variant, Version
from shared.replies import Claim
from shared.requests import RequestHeaders, derived_id, from_kafka, request_id_of

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from services.worker.ledger import Ledger
    from shared.oip import InferenceRequest

DEATHS_ALLOWED = 2
"""Workers that may die while running a record; the third time it fails instead of running again."""


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What will answer a job, decided under one registry."""

    registry_offset: int
    version: Version
    variant: Variant
    key: ShapeKey
    """Jobs with equal keys can share a run."""
    rows: int | None
    """None: it runs alone."""
    unprepared: bool = False
    """Whether it has to be prepared first: key and rows are not known then."""


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the worker."""

    model: str
    record: ConsumerRecord
    ledger: Ledger
    request_id: str
    headers: RequestHeaders
    input_sha256: str
    request: InferenceRequest | None
    error: AiaasError | None
    deaths: int
    size_bytes: int
    """Request bytes that it holds in memory."""
    fetched_bytes: int = 0
    """Those of them that came from the artifact store."""
    high: bool = False
    """Whether it goes before others."""
    plan: Plan | None = None
    original: InferenceRequest | None = None
    """The request as it came, if `request` is what preprocessing made of it."""
    prepared_for: tuple[str, str | None] | None = None
    """The file and the steps (of `Variant.key`) that it was prepared for."""
    prepared_bytes: int = 0
    preparation_ns: int = 0
    """How long decoding and tokenizing took."""

    @property
    def claim(self) -> Claim:
        """How this record claims its id."""
        record = self.record
        return Claim(record.topic, record.partition, record.offset, self.headers.tenant, self.input_sha256)

    def is_overdue(self, now_ms: int) -> bool:
        """Whether nobody waits for it any more, at a Unix time in ms."""
        return self.headers.deadline_ms is not None and now_ms > self.headers.deadline_ms


def read(record: ConsumerRecord, model: str, ledger: Ledger, deaths: int, *, high: bool = False) -> Job:
    """A record as a job."""
    value: bytes = record.value or b""
    headers, request, error = RequestHeaders(), None, None
    try:
        headers = from_kafka(record.headers)
        request = decode_request(headers.content_type, value, headers.header_length)
    except AiaasError as err:
        error = err
    except Exception:  # noqa: BLE001 - see below
        # A record must never stop its partition, not even by a bug of ours in reading it.
        logs.get().exception("a record could not be read", topic=record.topic, offset=record.offset)
        error = InvalidInput("the record could not be read")
    if deaths > DEATHS_ALLOWED:
        error = WorkerCrashed(f"{deaths} workers died while running this request")
    return Job(
        model=model,
        record=record,
        ledger=ledger,
        request_id=headers.request_id or _id(record),
        headers=headers,
        input_sha256=hashlib.sha256(value).hexdigest(),
        request=request,
        error=error,
        deaths=deaths,
        size_bytes=len(value),
        high=high,
    )


def _id(record: ConsumerRecord) -> str:
    """The id of a record whose headers were not read."""
    try:
        given = request_id_of(record.headers)
    except InvalidId:
        given = None
    return given or derived_id(record.topic, record.partition, record.offset)
