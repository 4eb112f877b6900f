"""`/metrics`, the dashboard's API, the report and the outcome log agree to the unit, while workers and the monitor die.

Every answer says at which offsets of the outcome log it holds, so each is held against a count of the log up to there,
made here by the public rule: the first outcome of a request counts.
"""

from __future__ import annotations

import asyncio
import csv
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.monitor.settings import MonitorSettings
from shared.outcomes import read_outcome
from shared.topics import OUTCOMES
from support import onnx_models
from support.front_door import body, row
from support.monitor_process import Monitor
from support.ports import free_port
from support.small_stack import small_stack
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.outcome_events import Receipt
    from support.log_readers import Log

pytestmark = [pytest.mark.stack, pytest.mark.chaos]
SEED = int(os.environ.get("AIAAS_TEST_FUZZ_SEED", "20261129"))
PARTITIONS = 4
KILLS = 4
LOOKS = 3
"""States on the way, which every surface is held at in each life of the monitor."""
LIFE_S = 90
PACE_S = 0.03
OK = 200
MINUTE_S, WINDOW_S = 60, 10
Offsets = dict[int, int]
Counts = Counter[tuple[int | None, str]]
"""Requests by version and status; a version that is not there is none."""
Said = tuple[Offsets, Counts]


class OutcomeLog:
    """Receipts in order, each with its place in the log, and what they come to."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.receipts: list[tuple[int, int, Receipt]] = []

    def poll(self) -> None:
        self.receipts += (
            (record.partition(), record.offset(), read_outcome(record.key(), record.value()))
            for record in self._log.poll()
        )

    @property
    def ends(self) -> Offsets:
        return {partition: offset + 1 for partition, offset, _ in self.receipts}

    def count(self, offsets: Offsets, during: Callable[[float], bool] = lambda _: True) -> Counts:
        """Below these offsets, of what completed when it is asked for."""
        highest: defaultdict[tuple[str, int], int] = defaultdict(lambda: -1)
        found: Counts = Counter()
        for partition, offset, receipt in self.receipts:
            of = receipt.request.topic, receipt.request.partition
            if offset >= offsets.get(partition, 0) or receipt.request.offset <= highest[of]:
                continue
            highest[of] = receipt.request.offset
            if during(datetime.fromisoformat(receipt.completed_at).timestamp()):
                known = receipt.error_code != "unknown_version"
                found[receipt.model_version if known else None, receipt.status] += 1
        return found


def stats(told: dict) -> Said:
    found: Counts = Counter()
    for series in told["models"]:
        found.update({(series["version"], status): n for status, n in series["outcomes"].items()})
    return _at(told["offsets"]), +found


def metrics(text: str) -> Said:
    offsets, found = {}, Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "aiaas_outcomes_offset":
                offsets[int(sample.labels["partition"])] = int(sample.value)
            elif sample.name == "aiaas_requests_total":
                version = sample.labels["version"]
                found[int(version) if version else None, sample.labels["status"]] += int(sample.value)
    return offsets, +found


def series(told: dict) -> Said:
    """Which is of one version, or of all together."""
    found = {(told["version"], status): sum(counts) for status, counts in told["requests"].items()}
    assert found == {(told["version"], status): told["totals"][status] for status in told["requests"]}
    return _at(told["offsets"]), +Counter(found)


def report(text: str) -> Said:
    offsets, found = {}, Counter()
    for line in csv.DictReader(text.splitlines()):
        if line["section"] == "offsets":
            offsets[int(line["series"].removeprefix("partition "))] = int(float(line["value"]))
        elif line["section"] == "outcomes":
            _, _, version = line["of"].partition(" version ")
            found[int(version) if version else None, line["series"]] += int(float(line["value"]))
    return offsets, +found


def overview(told: dict) -> Said:
    found: Counts = Counter()
    for model in told["models"]:
        found.update({(model["version"], status): n for status, n in model["outcomes"].items()})
    assert found.total() == told["totals"]["requests"]
    return _at(told["offsets"]), +found


def _at(offsets: dict[str, int]) -> Offsets:
    return {int(partition): offset for partition, offset in offsets.items()}


async def agreeing(monitor: Monitor, log: OutcomeLog, model: str, since_s: int) -> list[Offsets]:
    """Hold what every surface says now against the log; the offsets at which they said it, none if it is away."""
    of_model = f"/v1/models/{model}/series?from={since_s}"
    paths = ("/v1/stats", "/metrics", of_model, f"{of_model}&version=1", f"/v1/report?from={since_s}&format=csv")
    answers = await asyncio.gather(*map(monitor.get, (*paths, "/v1/overview")))
    if not all(answer is not None and answer.status_code == OK for answer in answers):
        return []
    await asyncio.to_thread(log.poll)
    of_stats, of_metrics, of_all, of_first, of_report, of_overview = answers
    held = [stats(of_stats.json()), metrics(of_metrics.text), report(of_report.text)]
    for offsets, counts in held:
        assert counts == log.count(offsets)
    at_all, all_together = series(of_all.json())
    by_status: Counts = Counter()
    for (_, status), n in log.count(at_all).items():
        by_status[None, status] += n
    assert all_together == by_status
    at_first, first = series(of_first.json())
    assert first == Counter({of: n for of, n in log.count(at_first).items() if of[0] == 1})
    end_s = int(of_overview.json()["at"] // WINDOW_S + 1) * WINDOW_S
    at_minute, minute = overview(of_overview.json())
    assert minute == log.count(at_minute, lambda at_s: end_s - MINUTE_S <= at_s < end_s)
    return [*(offsets for offsets, _ in held), at_all, at_first, at_minute]


@pytest.fixture
async def there(backbone, tmp_path):
    async with small_stack(backbone, tmp_path, workers=2) as stack:
        yield stack


@pytest.fixture
def monitor(backbone, there):
    first = there.worker_settings[0]
    monitor = Monitor(
        backbone.settings(
            MonitorSettings,
            topic_prefix=first.topic_prefix,
            monitor_port=free_port(),
            monitor_snapshot_interval_s=0.5,
        )
    )
    yield monitor
    monitor.kill()


async def test_every_surface_agrees_with_the_log_at_its_offsets(there, monitor, backbone, tmp_path, record_property):
    name, dice, since_s = backbone.model(), random.Random(SEED), int(time.time())
    log = OutcomeLog(there.door.log(there.door.topics.name(OUTCOMES)))
    monitor.start()
    await there.serve(name, onnx_models.linear())
    sent, enough = 0, asyncio.Event()

    async def send():
        nonlocal sent
        while not enough.is_set():
            odd = dice.random()
            about = {"deadline": b"1"} if odd < 0.1 else {"model_version": b"9"} if odd < 0.2 else {}
            value = b"no request" if odd > 0.9 else body(row(sent, 4))
            await there.door.send(name, value, ce_id=f"r{sent}", partition=sent % PARTITIONS, **about)
            sent += 1
            await asyncio.sleep(PACE_S)

    async def look_on_the_way():
        """Hold every surface against the log, each in as many states as it takes."""
        seen: defaultdict[int, set[tuple]] = defaultdict(set)
        while not seen or min(map(len, seen.values())) < LOOKS:
            for surface, offsets in enumerate(await agreeing(monitor, log, name, since_s)):
                seen[surface] |= {tuple(sorted(offsets.items()))} if offsets else set()
            await asyncio.sleep(PACE_S)

    async def finished():
        held = await agreeing(monitor, log, name, since_s)
        assert log.count(log.ends).total() == sent
        assert held
        assert all(offsets == log.ends for offsets in held)
        return True

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        for number in range(KILLS):
            async with asyncio.timeout(LIFE_S):
                await look_on_the_way()
            await there.kill_worker(number % 2)
            there.start_worker(number % 2)
            monitor.kill()
            await asyncio.sleep(dice.random())
            monitor.start()
        enough.set()
    await eventually(finished, within_s=90, what="every surface at the end of the log")
    counts = log.count(log.ends)
    assert set(counts) == {(1, "succeeded"), (1, "expired"), (None, "failed")}
    file = tmp_path / "report.csv"
    command = [sys.executable, "-m", "services.cli", "report", "--url", monitor.url, "--from", str(since_s)]
    await asyncio.to_thread(subprocess.run, [*command, "--format", "csv", "--out", str(file)], check=True)
    assert report(file.read_text()) == (log.ends, counts)
    record_property("repeats", len(log.receipts) - sent)
