"""The history against real Kafka: all surfaces agree with the log through SIGKILL, and a gap is filled where it was."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sklearn.datasets import load_digits

from services.monitor.settings import MonitorSettings
from services.worker.observing import Observer
from shared import kafka, registry_log, topics
from shared.alert_events import AlertRaised
from shared.codec import decode_event, rfc3339
from shared.metric_events import HttpAnswered, RowsObserved
from shared.outcome_events import BatchMembership, Timings
from shared.outcomes import OutcomeWriter
from shared.signature import Signature, TensorSpec
from shared.telemetry import Telemetry
from support.facts import encoded, receipt, uploaded
from support.ports import free_port
from support.waiting import eventually

if TYPE_CHECKING:
    from support.monitor_process import Monitor

pytestmark = pytest.mark.stack
REQUESTS = 240
MINUTE_S = 60


@pytest.fixture
def settings(backbone):
    return backbone.settings(
        MonitorSettings, monitor_port=free_port(), monitor_snapshot_interval_s=0.3, monitor_watch_interval_s=0.5
    )


def outcome(settings, offset: int, at_s: float):
    """One that completed at a moment; half of the last minute's fail."""
    dice = random.Random(offset)
    ago_s = time.time() - at_s
    failed = ago_s < MINUTE_S and dice.randrange(2)
    return receipt(
        offset,
        topic=settings.topics.requests("m"),
        model_version=dice.randint(1, 2),
        status="failed" if failed else "succeeded",
        error_code="execution_failed" if failed else None,
        batch=BatchMembership(id="b", index=offset % 4, size=4, padding=0, members_sha256="0" * 64, rows=1),
        timings_ns=Timings(queue=dice.randint(0, 10**8), compute_infer=dice.randint(0, 10**7), compute_output=1000),
        completed_at=rfc3339(int(at_s * 1e9)),
    )


async def append(settings, outcomes) -> None:
    async with OutcomeWriter(settings) as writer:
        await writer.append(settings.topics.requests("m"), 0, encoded(outcomes))


def sampled(text: str, name: str) -> Counter:
    found: Counter = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels.get("model") == "m":
                found[sample.labels["version"], sample.labels["status"]] += int(sample.value)
    return found


async def test_every_surface_agrees_with_the_log_and_a_gap_is_filled(settings, monitor, producer):
    await kafka.ensure_topics(settings)
    for _ in range(REQUESTS):
        await producer.send(settings.topics.requests("m"), b"{}", partition=0)
    await producer.flush()
    now_s = time.time()
    # One every three seconds of the last twelve minutes: the monitor is away for the ten in the middle.
    written = [outcome(settings, n, now_s - 3 * (REQUESTS - n)) for n in range(REQUESTS)]
    monitor.start()
    await append(settings, written[:20])
    await eventually(lambda: _counted(monitor, 20), within_s=90)
    monitor.kill()
    await append(settings, written[15:220])  # with a zombie's repeats
    monitor.start()
    await eventually(lambda: _counted(monitor, 220), within_s=90)
    monitor.kill()
    await append(settings, written[200:])
    monitor.start()
    await eventually(lambda: _counted(monitor, REQUESTS), within_s=90)

    expected = Counter((str(each.model_version), each.status) for each in written)
    stats = await monitor.stats()
    series = (await monitor.get(f"/v1/models/m/series?from={now_s - 900}&step_s=60")).json()
    assert (
        Counter({(str(s["version"]), status): n for s in stats["models"] for status, n in s["outcomes"].items()})
        == expected
    )
    assert sampled((await monitor.get("/metrics")).text, "aiaas_requests_total") == expected
    by_version = {}
    for version in (1, 2):
        totals = (await monitor.get(f"/v1/models/m/series?version={version}&from={now_s - 900}")).json()["totals"]
        by_version |= {(str(version), s): totals[s] for s in ("succeeded", "failed") if totals[s]}
    assert by_version == expected
    windows = {at: sum(series["requests"][s][n] for s in series["requests"]) for n, at in enumerate(series["at"])}
    own = Counter(int(now_s - 3 * (REQUESTS - n)) // 60 * 60 for n in range(REQUESTS))
    assert {at: n for at, n in windows.items() if n} == own
    queue_s = sum(each.timings_ns.queue for each in written) / REQUESTS / 1e9
    assert series["totals"]["latency_s"]["queue"]["mean"] == pytest.approx(queue_s)

    story = (await monitor.get(f"/v1/requests/{written[100].request_id}")).json()
    [told] = story["outcomes"]
    assert told["request"]["offset"] == 100
    assert [each["what"] for each in told["story"]] == ["enqueued", "run", "computed", "answered", "recorded"]
    assert (await monitor.get("/v1/requests/nobody")).status_code == 404
    assert (await monitor.get("/v1/models/nobody/series")).status_code == 404
    assert (await monitor.get("/v1/models/m/series?step_s=7")).status_code == 400


async def _counted(monitor: Monitor, requests: int) -> bool:
    stats = await monitor.stats()
    return bool(stats) and sum(sum(series["outcomes"].values()) for series in stats["models"]) == requests


def rows_of_digits(telemetry: Telemetry):
    """What a worker sends of real digits, and of the same when they lie a pixel lower."""
    images = (load_digits().images / 16).astype(np.float32)[:, None]
    signature = Signature(
        inputs=(TensorSpec(name="image", datatype="FP32", shape=("n", 1, 8, 8), batch_axis=0),), outputs=()
    )
    observer, dice = Observer(), np.random.default_rng(3)
    for number in range(8):
        rows = images[dice.integers(0, len(images), 250)]
        feeds = {"image": rows if number < 5 else np.roll(rows, 1, axis=2)}
        observer.saw(("digits", 1, "fp32"), signature, feeds, [], [1] * len(rows))
        for (model, version, variant), count, features in observer.take():
            about = {"model": model, "version": version, "variant": variant}
            yield telemetry.event(RowsObserved, **about, rows=count, features=features)


async def test_deploys_overload_drift_and_alerts_are_told(settings, monitor, producer):
    monitor.start()
    await monitor.ready()  # the rules look at the last minute, so it has to be there when things happen
    async with registry_log.follow(settings, producer) as log:
        await log.publish(uploaded("m"))
    for _ in range(100):
        await producer.send(settings.topics.requests("m"), b"{}", partition=0)
    await producer.flush()
    gateway = Telemetry(settings.model_copy(update={"instance": "gateway-1"}), "gateway", producer)
    await gateway.publish([gateway.event(HttpAnswered, statuses={200: 60, 503: 40}, in_flight=3)])
    worker = Telemetry(settings.model_copy(update={"instance": "worker-1"}), "worker", producer)
    await worker.publish(rows_of_digits(worker))
    await append(settings, [outcome(settings, n, time.time()) for n in range(100)])

    async def raised() -> set[str]:
        response = await monitor.get("/v1/alerts")
        names = {alert["rule"] for alert in response.json()["active"]} if response and response.is_success else set()
        return names if {"errors", "rejections", "drift"} <= names else set()

    async def all_counted() -> dict:
        overview = (await monitor.get("/v1/overview")).json()
        assert overview["totals"]["requests"] >= 100
        return overview

    async def all_told() -> list:
        events = (await monitor.get("/v1/timeline")).json()["events"]
        assert {event["kind"] for event in events} >= {"deploy", "start", "overload", "alert"}
        return events

    async def all_compared() -> list:
        models = (await monitor.get("/v1/drift")).json()["models"]
        assert models[0]["windows_compared"] >= 4
        return models

    await eventually(raised, within_s=90)
    overview = await eventually(all_counted, within_s=90)
    assert overview["totals"]["requests"] == 100
    assert overview["totals"]["rejected"] == 40
    assert {alert["rule"] for alert in overview["alerts"]} >= {"errors", "rejections"}
    events = await eventually(all_told, within_s=90)
    assert any("uploaded" in event["text"] and event["version"] == 1 for event in events)
    [model] = (await monitor.get("/v1/models")).json()["models"]
    assert (model["model"], model["versions"][0]["state"]) == ("m", "uploaded")

    topic = settings.topics.name(topics.ALERTS)
    async with kafka.started(lambda: kafka.consumer(settings, topic), "test") as consumer:
        record = await consumer.getone()
    assert decode_event(AlertRaised, record.value).rule in {"errors", "rejections", "drift"}
    [drifted] = await eventually(all_compared, within_s=90)
    assert (drifted["model"], drifted["alarm"], drifted["windows_compared"]) == ("digits", True, 4)
    report = await monitor.get("/v1/report?from=-10m")
    assert "was uploaded" in report.text
    assert "overload: 40 requests were refused" in report.text
