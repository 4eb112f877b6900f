"""Facts of what came of requests: receipts (topic `outcomes`), and what they add up to (topic `statistics`)."""

from __future__ import annotations

from typing import Literal

from shared.events import Event, Fields, ModelName, VersionNumber

Status = Literal["succeeded", "failed", "expired", "cancelled"]


class Coordinates(Fields):
    """Where a record lies. `cluster_id` tells clusters apart in an archive."""

    cluster_id: str | None = None
    topic: str
    partition: int
    offset: int


class Runtime(Fields):
    """What ran the batch, as far as it can change a bit of the answer."""

    engine: str
    version: str
    provider: str
    options: dict[str, str | int | bool]
    threads: int
    isa: str


class BatchMembership(Fields):
    """Which batch the request ran in, and where in it."""

    id: str
    index: int
    size: int
    """Requests in the batch."""
    padding: int
    members_sha256: str
    """Over each member's `topic-partition-offset` and `input_sha256`, separated by a space, one a line, in order."""
    rows: int | None = None
    """Rows of this request; null where the model's rows were not proved independent: the request then ran alone."""
    total_rows: int | None = None
    """Rows of the whole batch, since one member speaks for the run in statistics; null where `rows` is."""


class Timings(Fields):
    """Where the time went, in nanoseconds. `queue` alone where nothing ran."""

    queue: int
    compute_input: int | None = None
    compute_infer: int | None = None
    compute_output: int | None = None


class Receipt(Event):
    """The one outcome of an accepted request, in `outcomes` and in its result."""

    request_id: str
    duplicate_of: Coordinates | None = None
    tenant: str | None = None
    model_name: str
    model_version: int | None = None
    variant: str | None = None
    artifact_sha256: str | None = None
    registry_offset: int
    """The registry that chose the version; -1 where none was chosen."""
    status: Status
    error_code: str | None = None
    request: Coordinates
    input_sha256: str
    output_sha256: str | None = None
    runtime: Runtime | None = None
    batch: BatchMembership | None = None
    timings_ns: Timings
    worker: str
    reexecuted: bool = False
    completed_at: str
    processing_sha256: str | None = None
    """The digest of the version's declared processing; null where there is none. `artifact_sha256` is the model's."""


class Duration(Fields):
    """How often something was done, and the nanoseconds it took altogether."""

    count: int = 0
    ns: int = 0


class RunStatistics(Fields):
    """Runs of the model with one number of rows. A run's times count once, not for each request."""

    batch_size: int
    """Rows; where receipts do not tell them, requests."""
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(Event):
    """What came of the requests to a version since the log began. The topic is compacted by `model/version`.

    Exact for the outcomes below `offsets`. Phases count succeeded requests; `runs` only runs that succeeded.
    """

    model: ModelName
    version: VersionNumber
    last_inference_ms: int
    """When the last outcome was appended, in ms since the epoch."""
    inferences: int
    """Rows that runs answered, 1 for a request whose receipt tells none.

    A duplicate, which got the first one's answer, succeeds without one. `compute_infer` counts the requests.
    """
    success: Duration
    fail: Duration
    """Failed, expired or cancelled."""
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    runs: tuple[RunStatistics, ...] = ()
    offsets: dict[int, int]
    """The next offset to fold, by partition of the outcome log."""

    @property
    def executions(self) -> int:
        """Runs of the model."""
        return sum(run.compute_infer.count for run in self.runs)
