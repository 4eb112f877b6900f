"""The report in all its forms: the same exact counts in each, one file, and names that look like markup stay text."""

from __future__ import annotations

import csv
import io
import re
import struct
import time
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from httpx import ASGITransport, AsyncClient

from services.monitor.history import History
from services.monitor.report import svg
from services.monitor.report.content import Line
from services.monitor.report.wording import number
from services.monitor.routes import application
from services.monitor.settings import MonitorSettings
from services.monitor.span import Span
from services.monitor.state import State
from shared import tensorboard
from shared.codec import rfc3339
from shared.outcome_events import BatchMembership, Timings
from support.facts import receipt

EVIL = '<script>alert("x")</script>|[a](b)'


@pytest.fixture
def state(tmp_path):
    state = State(5.0, waiting_for=lambda: None, history=History(tmp_path))
    state.outcomes.sink = state.recorder
    now_ns = time.time_ns()
    for offset in range(300):
        at_ns = now_ns - offset * 10**9
        failed = offset % 3 == 0
        outcome = receipt(
            offset,
            model_version=1,
            status="failed" if failed else "succeeded",
            error_code="run_timeout" if failed else None,
            batch=BatchMembership(id="b", index=0, size=1 + offset % 8, padding=0, members_sha256="0", rows=1),
            timings_ns=Timings(queue=10**6 * (1 + offset % 9), compute_infer=10**6, compute_output=10),
            completed_at=rfc3339(at_ns),
        )
        state.outcomes.add([(0, offset, outcome, at_ns // 10**6)])
    at_s = now_ns / 1e9 - 100
    state.recorder.event(at_s, "restart", f"{EVIL} started again", instance=EVIL)
    for gauge in ("cpu_percent", "rss_bytes", "disk_used_bytes"):
        state.recorder.sample(at_s, gauge, 40.0, instance=EVIL, service="worker")
    state.recorder.sample(at_s, "gpu_utilisation_percent", 90.0, instance=EVIL, service="worker", gpu=0)
    state.recorder.sample(at_s, "drift/input/x/mean", 0.2, instance="version 1", model="m")
    return state


@pytest.fixture
async def report(state):
    app = application(state, MonitorSettings(), {})

    async def report(form, query=""):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://monitor") as client:
            response = await client.get(f"/v1/report?from=-10m&format={form}{query}")
        assert response.status_code == 200, response.text
        return response.content

    return report


class Page(HTMLParser):
    """What is in a page: its tags, what they refer to, and the headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.text = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        held = dict(attributes)
        self.ids.add(held.get("id"))
        self.links += [held[name] for name in ("href", "src", "xlink:href") if name in held]

    def handle_data(self, data):
        self.text.append(data)


async def test_the_page_is_one_file_with_every_section_and_its_plots(report):
    text = (await report("html")).decode()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert {"cpu", "gpu", "memory", "disk", "latency", "throughput", "drift", "events", "outcomes"} <= page.ids
    assert "url(" not in text
    assert "@import" not in text
    assert page.tags.count("figure") >= 8
    assert page.tags.count("rect") == 8  # batch sizes
    assert "mark mark-restart" in text
    assert "prefers-color-scheme: dark" in text
    told = " ".join(page.text)
    assert "run_timeout: 100" in told
    assert EVIL in told  # as text


async def test_all_forms_have_the_same_exact_counts(report):
    rows = list(csv.DictReader(io.StringIO((await report("csv")).decode())))
    table = pq.read_table(io.BytesIO(await report("parquet"))).to_pylist()
    markdown = (await report("md")).decode()
    for found in (rows, table):
        offsets = {row["series"]: float(row["value"]) for row in found if row["section"] == "offsets"}
        assert offsets == {"partition 0": 300}
        counts = {row["series"]: float(row["value"]) for row in found if row["section"] == "outcomes"}
        assert counts == {"succeeded": 200, "failed": 100, "expired": 0, "cancelled": 0}
    assert len(rows) == len(table)
    assert re.search(r"^\| m version 1 \| 300 \| 200 \| 100 \| 0 \| 0 \|", markdown, re.MULTILINE)
    assert "<script>" not in markdown


async def test_a_report_on_one_model_leaves_out_the_others(report):
    assert "m version 1" not in (await report("md", "&model=other")).decode()


async def test_the_tensorboard_file_is_whole_records_with_every_series(report):
    content, records = await report("tensorboard"), []
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        records.append(content[12 : 12 + length])
        assert tensorboard.record(records[-1]) == content[: 16 + length]
        content = content[16 + length :]
    assert b"brain.Event:2" in records[0]
    assert any(b"latency/m version 1/p95" in each for each in records)


def test_a_gap_in_numbers_is_a_gap_in_the_line():
    span = Span(0, 60, 10)
    drawn = svg.lines("t", [Line("cpu", "w", "n", "percent", (1.0, 2.0, None, 3.0, None, 4.0))], span, [])
    assert drawn.count("<polyline") == 1
    assert drawn.count("<circle") == 2


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.00123, "seconds", "1.23 ms"),
        (1.5e-6, "seconds", "1.5 µs"),
        (12.0, "seconds", "12 s"),
        (3_100_000_000, "bytes", "3.1GB"),
        (None, "bytes", "–"),  # noqa: RUF001 - a dash
        (41.4, "percent", "41 %"),
    ],
)
def test_numbers_as_people_read_them(value, unit, expected):
    assert number(value, unit) == expected
