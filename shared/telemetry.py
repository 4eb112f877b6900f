"""Metric events: every service tells the monitor, through `metrics`, how it and its host are.

Each interval a `Telemetry` samples the host and asks its sources for what they counted since. Metrics are the one
thing that may be lost: if Kafka does not take them, they are dropped, and the gap in `seq` says so. What must be exact
is counted from `outcomes`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import pynvml
from aiokafka.errors import KafkaError

from shared import logs, topics
from shared.codec import cloud_event_headers, encode_event
from shared.metric_events import GpuSample, HostSampled, MetricEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiokafka import AIOKafkaProducer

    from shared.settings import PlatformSettings

M = TypeVar("M", bound=MetricEvent)
_LOOP_PROBE_S = 0.1


class Telemetry:
    """The metric events of one instance. `sources` are called each interval, and give events made with `event`."""

    def __init__(self, settings: PlatformSettings, service: str, producer: AIOKafkaProducer) -> None:
        self._settings = settings
        self._service = service
        self._producer = producer
        self._topic = settings.topics.name(topics.METRICS)
        self._seq = 0
        self._process = psutil.Process()
        self._loop_delay_s = 0.0
        self.sources: list[Callable[[], Iterable[MetricEvent]]] = [self._host]

    def event(self, event_type: type[M], **fields: Any) -> M:
        """A metric event of this instance, with the next `seq`."""
        self._seq += 1
        return event_type(
            instance=self._settings.instance,
            incarnation=self._settings.incarnation,
            service=self._service,
            seq=self._seq,
            at_ns=time.time_ns(),
            **fields,
        )

    async def run(self) -> None:
        """Publish each interval until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe_loop())
            while True:
                await asyncio.sleep(self._settings.metrics_interval_s)
                await self.publish(event for source in self.sources for event in source())

    async def publish(self, events: Iterable[MetricEvent]) -> None:
        """Send events now; drops them, with a log line, if Kafka does not take them."""
        try:
            for event in events:
                await self._producer.send_and_wait(
                    self._topic,
                    encode_event(event),
                    key=event.instance.encode(),
                    headers=cloud_event_headers(event_type=type(event).__name__, source=event.instance),
                )
        except KafkaError as err:
            logs.get().warning("metrics dropped", error=repr(err))

    async def _probe_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOP_PROBE_S
            await asyncio.sleep(_LOOP_PROBE_S)
            self._loop_delay_s = max(self._loop_delay_s, loop.time() - due)

    def _host(self) -> Iterable[MetricEvent]:
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._settings.data_dir if self._settings.data_dir.exists() else "."))
        io, network = psutil.disk_io_counters(), psutil.net_io_counters()
        delay_s, self._loop_delay_s = self._loop_delay_s, 0.0
        yield self.event(
            HostSampled,
            cpu_percent=self._process.cpu_percent(),
            rss_bytes=self._process.memory_info().rss,
            host_cpu_percent=psutil.cpu_percent(),
            host_memory_used_bytes=memory.total - memory.available,
            host_memory_total_bytes=memory.total,
            disk_used_bytes=disk.used,
            disk_total_bytes=disk.total,
            disk_read_bytes=io.read_bytes if io else 0,
            disk_written_bytes=io.write_bytes if io else 0,
            gpus=tuple(gpus()),
            loop_delay_s=delay_s,
            network_received_bytes=network.bytes_recv if network else 0,
            network_sent_bytes=network.bytes_sent if network else 0,
        )


def gpus() -> list[GpuSample]:
    """The GPUs of this host by NVML, none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> GpuSample:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuSample(
        index=index,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        utilisation_percent=pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        memory_used_bytes=int(memory.used),
        memory_total_bytes=int(memory.total),
        power_w=_optional(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        temperature_c=_optional(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
    )


def _optional(read: Callable[[], float]) -> float | None:
    """A reading that not every GPU offers."""
    try:
        return float(read())
    except pynvml.NVMLError:
        return None
