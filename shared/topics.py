"""THE MAP of the log: which topic carries what, by which key, who writes it and who reads it.

Names are `{prefix}{name}`; a model's requests lie in `{prefix}requests.{model}`, urgent ones beside it in
`{prefix}requests.{model}.high`: what waits in a log can't be overtaken, so a priority is a log. Auto-creation is off:
gateway and worker create a model's topics when they fold its `ModelUploaded`, every service creates the fixed ones at
start, both idempotently. Partition counts are set at creation and never raised silently, since the key decides the
partition.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared import (
    alert_events,
    events,
    export_events,
    heartbeat_events,
    measurement_events,
    metric_events,
    outcome_events,
    replay_events,
)

_KEPT_FOR_EVER = {"retention.ms": "-1", "retention.bytes": "-1"}
_BROKERS_CLOCK = {"message.timestamp.type": "LogAppendTime"}
"""Where readers rely on when a record was written: a writer's clock may be wrong, and its stamp is its own choice."""
_LAST_BY_KEY = {
    "cleanup.policy": "compact",
    "segment.ms": str(3600 * 1000),
    "min.cleanable.dirty.ratio": "0.1",
}
_UNPACKED = {"compression.type": "uncompressed"}
"""Producers may compress; the broker unpacks. So its bound for a batch is one on what readers have to hold: packed,
1 MiB could become gigabytes in a worker."""
_HIGH = ".high"
_DAY_MS = 24 * 3600 * 1000
MAX_RECORD_BYTES = 1_000_000
"""Kafka's own default bound for a record batch is 1 MiB: a record and its headers stay below it."""


@dataclass(frozen=True)
class Topic:
    """One row of the map."""

    name: str
    key: str
    value: str
    written_by: str
    read_by: str
    events: tuple[type[events.Event], ...] = ()
    partitions: int = 1
    config: dict[str, str] = field(default_factory=dict)

    @property
    def kafka_config(self) -> dict[str, str]:
        """What the topic is created with."""
        return _UNPACKED | self.config


REQUESTS = Topic(
    name="requests.",
    key="ordering key or request id",
    value="inference request (OIP v2: JSON, msgpack or binary)",
    written_by="gateway, upstream systems",
    read_by="worker, audit",
    partitions=4,
    config={"retention.ms": str(7 * _DAY_MS), "max.message.bytes": str(1024 * 1024)},
)
OUTCOMES = Topic(
    name="outcomes",
    key="request topic/partition",
    value="one receipt per request; the first in the log counts",
    written_by="worker",
    read_by="monitor, audit, upstream systems",
    events=(outcome_events.Receipt,),
    partitions=4,
    config={"retention.ms": str(30 * _DAY_MS)},
)
MODELS = Topic(
    name="models",
    key="model",
    value="the registry's log: state changes only",
    written_by="gateway, optimizer, monitor (from its dashboard), upstream systems",
    read_by="everyone",
    events=(
        events.ModelUploaded,
        events.UpdateRequested,
        events.PolicySet,
        events.RuntimeConfigured,
        events.OptimizationCancelled,
        events.OptimizationClaimed,
        events.FormatRecognised,
        events.StepFinished,
        events.VariantReady,
        events.VariantRejected,
        events.ModelReady,
        events.ModelRejected,
        events.ModelPromoted,
        events.TrafficSplit,
        events.ModelRolledBack,
        events.ModelRetired,
        events.ModelUnloaded,
        events.ModelLoaded,
        export_events.ExportRequested,
        export_events.ExportClaimed,
        export_events.ExportReady,
        export_events.ExportRejected,
    ),
    config=_KEPT_FOR_EVER | _BROKERS_CLOCK,
)
WORKERS = Topic(
    name="workers",
    key="instance",
    value="heartbeat: class, loaded variants, registry offset, lag, queue",
    written_by="worker, optimizer",
    read_by="gateway, optimizer, monitor",
    events=(heartbeat_events.Heartbeat,),
    config=_LAST_BY_KEY | _BROKERS_CLOCK,
)
STATISTICS = Topic(
    name="statistics",
    key="model/version",
    value="what came of a version's requests, cumulative, and the offsets of `outcomes` at which it is exact",
    written_by="monitor",
    read_by="gateway",
    events=(outcome_events.ModelStatistics,),
    config=_LAST_BY_KEY | _BROKERS_CLOCK,
)
METRICS = Topic(
    name="metrics",
    key="instance",
    value="host samples, batch statistics, job progress",
    written_by="everyone",
    read_by="monitor",
    events=(
        metric_events.HostSampled,
        metric_events.BatchesRan,
        metric_events.RowsObserved,
        metric_events.HttpAnswered,
        metric_events.JobProgressed,
    ),
    config={"retention.ms": str(7 * _DAY_MS)},
)
ALERTS = Topic(
    name="alerts",
    key="alert",
    value="an alert was raised or cleared",
    written_by="monitor",
    read_by="upstream systems",
    events=(alert_events.AlertRaised, alert_events.AlertCleared),
    config={"retention.ms": str(30 * _DAY_MS)},
)
DEAD_LETTERS = Topic(
    name="dead-letters",
    key="original key",
    value="original bytes; cause and coordinates in headers",
    written_by="worker, optimizer, monitor",
    read_by="aiaas dead-letters",
    config={"retention.ms": str(30 * _DAY_MS), "max.message.bytes": str(2 * 1024 * 1024)},
)

FEEDBACK = Topic(
    name="feedback",
    key="request id",
    value="ground truth for past requests; the last one for a request counts",
    written_by="gateway, upstream systems",
    read_by="optimizer",
    events=(events.FeedbackGiven,),
    partitions=4,
    config={"retention.ms": str(30 * _DAY_MS)},
)
MEASUREMENTS = Topic(
    name="measurements",
    key="model",
    value="how fast is it on your class of machine: questions to one worker each, and answers",
    written_by="optimizer, worker",
    read_by="worker, optimizer",
    events=(measurement_events.MeasurementRequested, measurement_events.MeasurementTaken),
    config={"retention.ms": str(_DAY_MS)},
)

REPLAYS = Topic(
    name="replays",
    key="batch id",
    value="a recorded batch to run again, pinned to a digest",
    written_by="audit",
    read_by="worker",
    events=(replay_events.ReplayRequested,),
    partitions=4,
    config={"retention.ms": str(_DAY_MS)},
)
REPLAY_RESULTS = Topic(
    name="replay-results",
    key="batch id",
    value="what came of a batch that ran again; the first for a batch counts",
    written_by="worker",
    read_by="audit",
    events=(replay_events.ReplayRan,),
    config={"retention.ms": str(_DAY_MS)},
)

FIXED: tuple[Topic, ...] = (
    OUTCOMES,
    MODELS,
    WORKERS,
    STATISTICS,
    METRICS,
    ALERTS,
    MEASUREMENTS,
    FEEDBACK,
    DEAD_LETTERS,
    REPLAYS,
    REPLAY_RESULTS,
)
"""Topics that are there from the start."""

EVENT_TYPES: dict[str, type[events.Event]] = {event.__name__: event for topic in FIXED for event in topic.events}
"""`ce_type` to event: what a record may call itself is listed here, never looked up by a name from the wire."""


@dataclass(frozen=True)
class Topics:
    """The names under one prefix."""

    prefix: str = "aiaas."

    def name(self, topic: Topic) -> str:
        """The Kafka name of a fixed topic."""
        return self.prefix + topic.name

    def requests(self, model: str, *, high: bool = False) -> str:
        """The Kafka name of one of a model's two request topics: the usual one, or that of high priority."""
        return f"{self.prefix}{REQUESTS.name}{model}{_HIGH if high else ''}"

    def model_of(self, requests_topic: str) -> str:
        """The model of a request topic, of whichever priority. Names of models have no dots."""
        return requests_topic.removeprefix(self.prefix + REQUESTS.name).removesuffix(_HIGH)

    def worker_group(self, model: str) -> str:
        """The consumer group of the workers that serve a model."""
        return f"{self.prefix}worker.{model}"

    @property
    def replay_group(self) -> str:
        """The consumer group of the workers, all of which run replays."""
        return f"{self.prefix}worker-replays"

    def is_ours(self, name: str) -> bool:
        """Whether a topic belongs to the platform: no reply copy may go there."""
        return name.startswith(self.prefix)


def outcome_key(topic: str, partition: int) -> bytes:
    """The key of all outcomes of one request partition, so that they lie in one outcome partition, in order."""
    return f"{topic}/{partition}".encode()
