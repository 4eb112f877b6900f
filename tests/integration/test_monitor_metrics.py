"""Metric events through FastStream on real Kafka: sums that survive a kill, poison that stops nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.monitor.settings import MonitorSettings
from shared import kafka, topics
from shared.codec import cloud_event_headers, encode_event, pack
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat
from shared.metric_events import BatchesRan, HttpAnswered, JobProgressed
from shared.telemetry import Telemetry
from support.ports import free_port
from support.raw_batches import malformed, produce
from support.waiting import eventually

if TYPE_CHECKING:
    from support.monitor_process import Monitor

pytestmark = pytest.mark.stack


@pytest.fixture
def settings(backbone):
    return backbone.settings(
        MonitorSettings, monitor_port=free_port(), monitor_snapshot_interval_s=0.2, metrics_interval_s=0.3
    )


async def write_garbage(settings, producer) -> int:
    event = HttpAnswered(instance="x", incarnation="i", service="s", seq=1, at_ns=1, statuses={200: 1000}, in_flight=0)
    records = [
        ("HttpAnswered", b"\xc1"),
        ("HttpAnswered", None),
        ("HttpAnswered", pack({"schema": 1})),
        ("ModelRetired", encode_event(event)),
        ("", encode_event(event)),
    ]
    for name, value in records:
        headers = [("ce_type", name.encode()), ("not-text", b"\xff"), ("content-type", None), ("reply_to", b"models")]
        await producer.send_and_wait(
            settings.topics.name(topics.METRICS), value, key=b"x", headers=headers if name else []
        )
    await produce(settings, settings.topics.name(topics.METRICS), 0, malformed())
    return len(records) + 3


async def write_batches(telemetry: Telemetry, count: int) -> None:
    fields = {"model": "m", "version": 1, "variant": "fp32", "executions": 2, "sizes": {4: 2}, "compute_infer_ns": 1000}
    for _ in range(count):
        event = telemetry.event(BatchesRan, **fields)
        await telemetry.publish([event, event])  # each is there twice


async def test_sums_survive_a_kill_and_poison_is_set_aside(settings, monitor, producer):
    telemetry = Telemetry(settings.model_copy(update={"instance": "worker-1"}), "worker", producer)
    monitor.start()
    await write_batches(telemetry, 10)
    garbage = await write_garbage(settings, producer)
    await write_batches(telemetry, 5)
    await eventually(lambda: _executions(monitor, 30), within_s=40)
    monitor.kill()
    await write_batches(telemetry, 5)
    monitor.start()
    await eventually(lambda: _executions(monitor, 40, repeats=20), within_s=40)
    stats = await monitor.stats()
    assert stats["metrics_ignored"] == {"repeat": 20}
    assert stats["http_statuses"] == {}

    async with kafka.started(lambda: kafka.consumer(settings, settings.topics.name(topics.DEAD_LETTERS)), "t") as dead:
        records = {}
        while len(records) < garbage:
            record = await dead.getone()
            records[dict(record.headers)["x-original-offset"]] = dict(record.headers)
    assert {headers["x-original-topic"].decode() for headers in records.values()} == {f"{settings.topic_prefix}metrics"}


async def _executions(monitor: Monitor, executions: int, repeats: int = 0) -> bool:
    """So many, and at least so many repeats: the last of them lies behind all that counts."""
    stats = await monitor.stats()
    if not stats or stats["metrics_ignored"].get("repeat", 0) < repeats:
        return False
    return [runs["executions"] for runs in stats["variants"]] == [executions]


async def test_hosts_jobs_and_heartbeats_are_shown(settings, monitor, producer):
    job = {"model": "m", "version": 1, "attempt": 1, "step": "measure", "fraction": 0.25}
    telemetry = Telemetry(settings.model_copy(update={"instance": "optimizer-1"}), "optimizer", producer)
    await telemetry.publish([*telemetry._host(), telemetry.event(JobProgressed, **job)])
    beat = Heartbeat(
        instance="worker-1",
        incarnation="i",
        service="worker",
        machine=MachineClass(isa="avx2"),
        registry_offset=3,
        lag={"m": 12},
        interval_s=60,  # it stays alive for longer than the test
    )
    await producer.send_and_wait(
        settings.topics.name(topics.WORKERS),
        encode_event(beat),
        key=b"worker-1",
        headers=cloud_event_headers(event_type="Heartbeat", source="worker-1"),
    )
    monitor.start()

    async def all_there() -> dict | None:
        response = await monitor.get("/v1/instances")
        instances = {row["instance"]: row for row in response.json()} if response else {}
        return instances if len(instances) == 3 else None

    instances = await eventually(all_there, within_s=40)  # the third is the monitor itself
    assert (instances["worker-1"]["up"], instances["worker-1"]["lag"]) == (True, {"m": 12})
    assert instances["optimizer-1"]["service"] == "optimizer"
    hosts = {row["instance"]: row for row in (await monitor.get("/v1/hosts")).json()}
    assert hosts["optimizer-1"]["rss_bytes"] > 10_000_000
    assert hosts["optimizer-1"]["disk_total_bytes"] > 0

    shown = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families((await monitor.get("/metrics")).text)
        for sample in family.samples
    }
    assert shown["aiaas_optimizer_job_progress_ratio", "1", "1", "m", "measure"] == 0.25
    assert shown["aiaas_consumer_lag", "m", "worker-1"] == 12
    assert shown["aiaas_process_resident_memory_bytes", "optimizer", "optimizer-1"] > 10_000_000

    document = (await monitor.get("/asyncapi")).json()
    assert document["asyncapi"].startswith("3.")
    assert set(document["components"]["schemas"]) >= {"HostSampled", "BatchesRan", "HttpAnswered", "JobProgressed"}
