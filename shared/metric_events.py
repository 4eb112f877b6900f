"""Facts of measurements by every process (topic `metrics`): hosts, runs, rows, answers and jobs."""

from __future__ import annotations

from typing import Literal

from shared.events import Event, Fields, Finite, Short


class MetricEvent(Event):
    """A measurement by an instance; `(instance, incarnation, seq)` tells repeats."""

    instance: str
    incarnation: str
    service: str
    seq: int
    at_ns: int


class GpuSample(Fields):
    """One GPU, by NVML."""

    index: int
    name: str
    utilisation_percent: Finite
    memory_used_bytes: int
    memory_total_bytes: int
    power_w: Finite | None = None
    temperature_c: Finite | None = None


class HostSampled(MetricEvent):
    """CPU, memory, disk and GPU of a process and its host."""

    cpu_percent: Finite
    """Of this process; 100 is one core."""
    rss_bytes: int
    host_cpu_percent: Finite
    host_memory_used_bytes: int
    host_memory_total_bytes: int
    disk_used_bytes: int
    disk_total_bytes: int
    disk_read_bytes: int
    disk_written_bytes: int
    gpus: tuple[GpuSample, ...] = ()
    loop_delay_s: Finite
    """Largest delay of the event loop since the last sample."""
    network_received_bytes: int = 0
    """By the host since its start, as are disk's."""
    network_sent_bytes: int = 0


class BatchesRan(MetricEvent):
    """Runs of one variant since the last such event of the instance."""

    model: str
    version: int
    variant: str
    executions: int
    sizes: dict[int, int]
    """Executions by number of requests in the batch."""
    compute_infer_ns: int


class Feature(Fields):
    """One number of each of many rows, as a histogram."""

    kind: Literal["number", "class"]
    """`number`: bins as `shared.bins` has them. `class`: which of the numbers in the row is the largest."""
    bins: dict[int, int]
    """Rows by bin."""


class RowsObserved(MetricEvent):
    """What a worker saw of the rows that went into, and came out of, one variant: of a sample of them."""

    model: str
    version: int
    variant: str
    rows: int
    features: dict[Short, Feature]
    """By what was taken of each row, as `input/x/mean`."""


class HttpAnswered(MetricEvent):
    """Answers of a gateway since its last such event, by status code."""

    statuses: dict[int, int]
    in_flight: int
    unready: int = 0
    """Of the 503: answers to who only looked (GET, HEAD), as readiness is asked for. Nobody was refused."""


class JobProgressed(MetricEvent):
    """An optimizer's job: which step it is in and how far."""

    model: str
    version: int
    attempt: int
    step: str
    fraction: Finite
    """Of the whole job."""
    remaining_s: Finite | None = None
    """How long it may still take, guessed from what it took so far."""
    points: dict[str, tuple[int, Finite]] = {}
    """The newest point of each curve, as `loss/train`: its place (step or epoch) and value."""
